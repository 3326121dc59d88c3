"""ViCA: pictures are no longer worked on, and text reads them in a few layers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visionpulse_analysis.pruners.base import LayerIndex, Pruner, Selection
from visionpulse_analysis.pruners.pattern import Pattern

# Of the authors' code, by the size of LLaVA-1.5.
PUBLISHED = {
    "llava-1.5-3b": (0, 1, 14, 15, 18, 19, 21, 22, 23),
    "llava-1.5-7b": (0, 1, 7, 8, 9, 10, 11, 14),
    "llava-1.5-13b": (0, 6, 8, 9, 10, 13, 14, 16),
}


@dataclass(frozen=True)
class ViCA(Pruner):
    """Leave pictures as they enter the language model, and let text see them in a few layers.

    ViCA, arXiv 2602.07574: patches take part in no self-attention and no MLP; in the layers listed, text attends to
    keys and values that the layer's own projections make of them, in prefill and at decode steps; in all others it
    attends to text alone, renormalised. Features that a model adds between layers (DeepStack) are added as usual. The
    authors train both stages of LLaVA anew under it; without that it is a probe of how much is lost.

    Not followed: in the authors' 7B model the words before the picture attend to nothing. How they found their layers
    is not verified.

    Parameters
    ----------
    layers : tuple of int, optional
        Zero-based layers in which text sees pictures. Left out, the authors' of LLaVA-1.5-7B (0, 1, 7 to 11 and 14 of
        32), scaled to the depth of the model; presets are their own.
    frozen : bool
        Whether pictures stay as they are; False lets them be worked on, and only restricts where they are read.
    """

    name: ClassVar[str] = "vica"

    layers: tuple[LayerIndex, ...] | None = None
    frozen: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        model: {"layers": found} for model, found in PUBLISHED.items()
    }  # fmt: skip

    def reading(self, n_layers: int) -> tuple[int, ...]:
        """The layers in which text sees pictures, of a model with so many."""
        scaled = {layer * n_layers // 32 for layer in PUBLISHED["llava-1.5-7b"]}
        return tuple(sorted(scaled if self.layers is None else set(self.layers)))

    def begin(self, run: Selection) -> None:
        every, reading = range(run.layout.n_layers), self.reading(run.layout.n_layers)
        Pattern(blind=reading).check(len(every))
        blind = tuple(layer for layer in every if layer not in reading)
        run.pattern |= Pattern(frozen=tuple(every) if self.frozen else (), blind=blind)
