"""Pruners that choose once per decode step, at an anchor layer, for that layer and all later ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import budget_to_k, check_anchor, check_share, resolve_anchor, share_of_each
from visionpulse_analysis.pruners.view import Layout, View


class AnchoredSelection(Selection):
    """Calls ``choose`` at the anchor layer of every decode step; the layers before it see every patch."""

    def __init__(self, layout: Layout, anchor_layer: int | None):
        super().__init__(layout)
        self.anchor = resolve_anchor(anchor_layer, layout)

    def choose(self, view: View) -> None:
        """Set ``kept`` for this step, and ``mass`` and ``budget`` where there are any."""
        raise NotImplementedError

    def visible(self, view: View) -> torch.Tensor | None:
        if view.layer == self.anchor:
            self.choose(view)
        return self.kept if view.layer >= self.anchor else None


@dataclass(frozen=True)
class FixedShare(Pruner):
    """Base of pruners that keep the same share of the patches at every step: a subclass says which, in ``keep``.

    Parameters
    ----------
    budget : float
        Share of the patches kept, in (0, 1]; rounded down, at least one.
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    budget: float = 0.05
    anchor_layer: int | None = None

    def __post_init__(self) -> None:
        check_share("budget", self.budget)
        check_anchor(self.anchor_layer)
        super().__post_init__()

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        """The patches of `layout` to keep by `view`, bool [row, patch], exactly `k` int64 [row] of them."""
        raise NotImplementedError

    def start(self, layout: Layout) -> Selection:
        return FixedShareSelection(self, layout)


class FixedShareSelection(AnchoredSelection):
    """Keeps ``k`` patches per row, chosen afresh at every step."""

    def __init__(self, pruner: FixedShare, layout: Layout):
        super().__init__(layout, pruner.anchor_layer)
        self.pruner = pruner
        self.budget = share_of_each(pruner.budget, layout.counts)
        self.k = budget_to_k(self.budget, layout.counts)
        self.most = int(self.k.max())

    def pick(self, view: View) -> torch.Tensor:
        """What the pruner's rule keeps of this view."""
        return self.pruner.keep(view, self.layout, self.k)

    def choose(self, view: View) -> None:
        self.kept = self.pick(view)
