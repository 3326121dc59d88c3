"""LOOK-M: one cut of the cache after prefill, text first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.choosing import float64, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class LookM(Pruner):
    """After prefill, each layer keeps the patches that the whole prompt attended to most, where text leaves room.

    In the style of LOOK-M, arXiv 2406.18139, section 3. Of the prompt's T tokens the last ``floor(recent * T)``
    stay, and ``floor(heavy * T)`` of the others: text first, all of which stays in any case, then patches by their
    score, the sum of the softmax weights that all prompt queries give them. The authors choose per head and merge
    what is cut into what is kept; here the heads of a layer choose together, by the sum of their scores, and
    nothing is merged. Prefill is dense.

    Parameters
    ----------
    heavy, recent : float
        Shares of the prompt's tokens, in 0..1; both 0.1 in the code.

    Raises
    ------
    ValueError
        A share is out of range.
    """

    name: ClassVar[str] = "lookm"

    heavy: float = 0.1
    recent: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.heavy <= 1 and 0 <= self.recent <= 1):
            raise ValueError(f"heavy and recent are shares of the prompt in 0..1, got {self.heavy} and {self.recent}")

    def start(self, layout: Layout) -> Selection:
        return _LookMSelection(self, layout)


class _LookMSelection(Selection):
    forgets = True

    def __init__(self, pruner: LookM, layout: Layout):
        super().__init__(layout)
        self.pruner = pruner
        self.per_layer: list[torch.Tensor] = []

    def observe_prefill(self, view: View) -> None:
        layout, width = self.layout, self.layout.text.shape[1]
        lengths = width - layout.starts
        recent, heavy = (
            torch.floor(share * float64(lengths) + 1e-9).long().to(lengths.device)
            for share in (self.pruner.recent, self.pruner.heavy)
        )
        old_text = layout.text & (torch.arange(width, device=recent.device) < width - recent[:, None])
        late = layout.patches & (layout.places >= width - recent[:, None])
        early = layout.patches & ~late
        room = torch.minimum((heavy - old_text.sum(dim=1)).clamp(min=0), early.sum(dim=1))
        self.per_layer.append(late | top_k(column_sums(view, layout).masked_fill(~early, -torch.inf), room))

    def visible(self, view: View) -> torch.Tensor | None:
        return self.per_layer[view.layer]


def column_sums(view: View, layout: Layout) -> torch.Tensor:
    """Attention that each patch gets from all prompt tokens and heads together: float32 [row, patch].

    256 queries at a time, since all pairs take much memory.
    """
    width = layout.text.shape[1]
    total = torch.zeros(layout.patches.shape, device=layout.patches.device)
    for start in range(0, width, 256):
        queries = torch.arange(start, min(start + 256, width), device=total.device).expand(len(total), -1)
        weights = (
            torch.softmax(view.query_logits(queries), dim=-1) * (queries >= layout.starts[:, None])[:, None, :, None]
        )
        # Padding sees nothing, which softmax makes NaN.
        total += weights.nan_to_num().sum(dim=(1, 2)).gather(1, layout.places)
    return total * layout.patches
