"""Pruners that let go of every patch at once: from a layer on, or from a step on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.choosing import check_layer
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class VTW(Pruner):
    """Withdraw all visual tokens at one layer of prefill; the layers from there on never see the image.

    VTW, arXiv 2405.05803, section 3: the image has moved into the text by then. Text keeps its positions.

    Parameters
    ----------
    layer : int, optional
        K of the paper, zero-based, the first layer without patches. Half of the layers if left out, as 16 of 32 is the
        default of the authors' command line; ``calibrate`` finds the one that the paper's search would.

    Raises
    ------
    ValueError
        The layer is out of range.
    """

    name: ClassVar[str] = "vtw"

    layer: int | None = None

    def start(self, layout: Layout) -> Selection:
        layer = layout.n_layers // 2 if self.layer is None else self.layer
        check_layer("layer", layer, layout)
        return _VTWSelection(layout, layer)


class _VTWSelection(Selection):
    def __init__(self, layout: Layout, layer: int):
        super().__init__(layout)
        self.layer = layer

    def visible_prefill(self, view: View) -> torch.Tensor | None:
        return torch.zeros_like(self.layout.patches) if view.layer == self.layer else None
