"""DyCoke: a fixed share of the cached patches, chosen again when the attention over the image moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from visionpulse_analysis._util.checks import Interval
from visionpulse_analysis._util.later import functional, torch
from visionpulse_analysis.pruners.base import Pruner, Selection, Share
from visionpulse_analysis.pruners.top_k import budget_to_k, check_layer, share_of_each, top_k
from visionpulse_analysis.pruners.view import View


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
    """

    name: ClassVar[str] = "dycoke"

    budget: Share = 0.3
    layer: Annotated[int, Interval(ge=1, what="the layer after the one that chooses,")] = 3
    threshold: float = 0.9
    unpruned_when_steady: bool = True

    def begin(self, run: Selection) -> None:
        check_layer("layer", self.layer, run.layout)
        run.before = run.chosen = None

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        if view.layer == self.layer - 1:
            self._choose(view, run)
        return run.kept if view.layer >= self.layer else None

    def _choose(self, view: View, run: Selection) -> None:
        """Set what this step reads, row by row."""
        layout = run.layout
        weights = view.patch_weights().mean(dim=1)
        k = budget_to_k(share_of_each(self.budget, layout.counts), layout.counts)
        new = top_k(weights.masked_fill(~layout.patches, -1.0), k)
        if run.before is None:
            run.kept = run.chosen = new
        else:
            steady = (functional.cosine_similarity(weights, run.before, dim=1) >= self.threshold)[:, None]
            run.kept = torch.where(steady, layout.patches if self.unpruned_when_steady else run.chosen, new)
            run.chosen = torch.where(steady, run.chosen, new)
        run.before = weights
