"""Baselines at equal retention: random selection, and keeping everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from visionpulse_analysis.pruners.base import (
    Layout,
    Pruner,
    Selection,
    View,
    budget_to_k,
    check_share,
    resolve_anchor,
    top_k,
)


@dataclass(frozen=True)
class Random(Pruner):
    """Keep a random share of the patches from the anchor layer on, drawn afresh at every decode step.

    Parameters
    ----------
    budget : float
        Share of the patches kept, in (0, 1]; rounded down, at least one.
    anchor_layer : int, optional
        Zero-based; the model's default anchor if left out.
    """

    name: ClassVar[str] = "random"

    budget: float = 0.05
    anchor_layer: int | None = None

    def __post_init__(self) -> None:
        check_share("budget", self.budget)

    def start(self, layout: Layout) -> Selection:
        return _RandomSelection(self, layout)


class _RandomSelection(Selection):
    def __init__(self, pruner: Random, layout: Layout):
        super().__init__(layout)
        self.pruner, self.anchor = pruner, resolve_anchor(pruner.anchor_layer, layout)

    def visible(self, view: View) -> torch.Tensor | None:
        if view.layer < self.anchor:
            return None
        if view.layer == self.anchor:
            patches = self.layout.patches
            draws = [
                np.random.default_rng([seed, view.step]).random(patches.shape[1])
                for seed in self.layout.seeds
            ]
            scores = torch.from_numpy(np.stack(draws)).to(patches.device).masked_fill(~patches, -torch.inf)
            self.budget = torch.full(
                (len(patches),), self.pruner.budget, dtype=torch.float64, device=patches.device
            )
            self.kept = top_k(scores, budget_to_k(self.budget, self.layout.counts))
        return self.kept


@dataclass(frozen=True)
class KeepAll(Pruner):
    """Keep every patch: decoding must equal dense decoding bit for bit."""

    name: ClassVar[str] = "keep_all"

    def start(self, layout: Layout) -> Selection:
        return _KeepAllSelection(layout)


class _KeepAllSelection(Selection):
    def visible(self, view: View) -> torch.Tensor | None:
        self.kept = self.layout.patches
        self.budget = torch.ones(len(self.kept), device=self.kept.device)
        return self.kept
