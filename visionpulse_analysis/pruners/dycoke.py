"""DyCoke: a fixed share of the cached patches, chosen again when the attention over the image moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import budget_to_k, check_layer, check_share, share_of_each, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class DyCoke(Pruner):
    """From ``layer`` on, each decode step reads the patches that its token attends to most in the layer before.

    DyCoke, arXiv 2411.15024, section 3.3 (its merging of video frames before the language model is not part of
    this). The score is the newest token's softmax weight in layer ``layer - 1``, mean over heads; ``floor(budget *
    n)`` patches are read. Nothing is deleted: what one step leaves out a later one may read. Prefill is dense.

    Parameters
    ----------
    budget : float
        Share kept in (0, 1], 1 - p of the paper (p = 0.7; the code has 0.8 where none is given).
    layer : int
        Zero-based first layer that reads the chosen patches only, at least 1 (3).
    threshold : float
        A step chooses anew if the cosine between its weights over the patches and those of the step before is below
        this (0.9); the first step always does.
    unpruned_when_steady : bool
        True does what the released code does at the other steps: it clears its list at each of them, so that they read
        every patch. False keeps the last choice.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: ClassVar[str] = "dycoke"

    budget: float = 0.3
    layer: int = 3
    threshold: float = 0.9
    unpruned_when_steady: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("budget", self.budget)
        if self.layer < 1:
            raise ValueError(f"layer must be at least 1, since the layer before it chooses, got {self.layer}")

    def start(self, layout: Layout) -> Selection:
        check_layer("layer", self.layer, layout)
        return _DyCokeSelection(self, layout)


class _DyCokeSelection(Selection):
    def __init__(self, pruner: DyCoke, layout: Layout):
        super().__init__(layout)
        self.pruner = pruner
        self.before: torch.Tensor | None = None
        self.chosen: torch.Tensor | None = None

    def visible(self, view: View) -> torch.Tensor | None:
        if view.layer == self.pruner.layer - 1:
            self.choose(view)
        return self.kept if view.layer >= self.pruner.layer else None

    def choose(self, view: View) -> None:
        """Set what this step reads, row by row."""
        patches = self.layout.patches
        weights = view.patch_weights().mean(dim=1)
        share = share_of_each(self.pruner.budget, self.layout.counts)
        new = top_k(weights.masked_fill(~patches, -1.0), budget_to_k(share, self.layout.counts))
        if self.before is None or self.chosen is None:
            self.kept = self.chosen = new
        else:
            steady = (cosine_similarity(weights, self.before, dim=1) >= self.pruner.threshold)[:, None]
            self.kept = torch.where(steady, patches if self.pruner.unpruned_when_steady else self.chosen, new)
            self.chosen = torch.where(steady, self.chosen, new)
        self.before = weights
