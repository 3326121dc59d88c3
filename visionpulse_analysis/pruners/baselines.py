"""Baselines that never look at the attention: everything, a random share (drawn anew or once), an even share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.anchored import FixedShare
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.top_k import drawn, most_kept, top_k
from visionpulse_analysis.pruners.view import Layout, View


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


@dataclass(frozen=True)
class Random(FixedShare):
    """Keep a random share of the patches from the anchor layer on, drawn afresh at every decode step.

    A row's draws depend on its seed and the step only, not on the rest of the batch.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "random"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        patches = layout.patches
        return top_k(drawn(layout, view.step).masked_fill(~patches, -torch.inf), k, most_kept(self.budget, layout))


@dataclass(frozen=True)
class StaticRandom(FixedShare):
    """Keep one random share of the patches from the anchor layer on, the same at every decode step.

    A control, of no paper: beside `Random`, what drawing afresh at every step is worth; beside a fixed set that was
    chosen, what the choice is worth. A row's set depends on its seed only.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "static_random"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        # Step 0 is prefill, of which `Random` never draws: the two are independent.
        order = drawn(layout, 0).masked_fill(~layout.patches, -torch.inf)
        return top_k(order, k, most_kept(self.budget, layout))


@dataclass(frozen=True)
class Uniform(FixedShare):
    """Keep evenly spaced patches from the anchor layer on, the same ones at every step.

    Of ``n`` patches in reading order, image after image, number ``floor((i + 1/2) n / k)`` for i = 0 .. k - 1: the
    middle of each of ``k`` equal stretches.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "uniform"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        n, k = layout.counts[:, None], k[:, None]
        i = torch.arange(layout.patches.shape[1], device=k.device)[None]
        middles = (2 * i + 1) * n // (2 * k)
        middles = torch.where(i < k, middles, middles[:, :1])
        return torch.zeros_like(layout.patches).scatter_(1, middles, True)
