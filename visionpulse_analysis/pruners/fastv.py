"""FastV: rank the patches early in the language model and drop the lower part for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.choosing import check_layer, check_share, drawn, nearest_k, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class FastV(Pruner):
    """Keep the patches that the last token attends to most in layer ``layer - 1``, from ``layer`` on.

    FastV, arXiv 2403.06764, section 4. The score of a patch is the softmax weight that the last prompt token gives it,
    in the layer before, mean over heads, as in the authors' code; their paper speaks of the mean over all tokens.
    ``round(budget * n)`` patches stay, all text stays, positions stay as they were.

    Parameters
    ----------
    layer : int
        K of the paper (2): zero-based, the first layer without the dropped patches. 0 keeps a random set.
    budget : float
        Share kept in (0, 1], 1 - R of the paper (R = 0.5).
    per_step : bool
        Choose again at every decode step by the newest token, with a dense prefill, as the paper's own evaluation did
        by running without a cache; here the cached states of earlier tokens are not recomputed. False chooses once, in
        prefill, as every implementation with a cache does.
    rope : bool
        False scores with queries and keys before rotary embedding, without the pull to the bottom of the image
        (FEATHER, arXiv 2412.13180).

    Raises
    ------
    ValueError
        A parameter is out of range, or ``rope=False`` is asked for per step or of layer 0.
    """

    name: ClassVar[str] = "fastv"

    layer: int = 2
    budget: float = 0.5
    per_step: bool = False
    rope: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("budget", self.budget)
        if not self.rope and (self.per_step or self.layer == 0):
            raise ValueError("rope=False needs the scores of prefill: leave per_step False and layer above 0")

    def start(self, layout: Layout) -> Selection:
        check_layer("layer", self.layer, layout)
        return _FastVPerStep(self, layout) if self.per_step else _FastVOnce(self, layout)


class _FastV(Selection):
    def __init__(self, pruner: FastV, layout: Layout):
        super().__init__(layout)
        self.pruner, self.k = pruner, nearest_k(pruner.budget, layout.counts)

    def choose(self, view: View) -> None:
        """Rank at the layer before the first pruned one; every layer may ask."""
        if self.pruner.layer == 0 and view.layer == 0:
            scores = drawn(self.layout, view.step)
        elif view.layer == self.pruner.layer - 1:
            scores = view.patch_weights(rope=self.pruner.rope).mean(dim=1)
        else:
            return
        self.kept = top_k(scores.masked_fill(~self.layout.patches, -torch.inf), self.k)


class _FastVOnce(_FastV):
    def visible_prefill(self, view: View) -> torch.Tensor | None:
        self.choose(view)
        return self.kept if view.layer == self.pruner.layer else None


class _FastVPerStep(_FastV):
    def visible(self, view: View) -> torch.Tensor | None:
        self.choose(view)
        return self.kept if view.layer >= self.pruner.layer else None
