"""A control that no method can have: one set for the whole trace, chosen when it is known what the trace looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.anchored import FixedShare, FixedShareSelection
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.top_k import most_kept, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class Hindsight(FixedShare):
    """Keep one set at every step: the patches that the dense trace attends to most, mean over its steps.

    A control for the claim that evidence depends on the step, of no paper. Each prompt is first decoded densely with
    the same seed and sampling; the patches are ranked by the head-mean attention at the anchor layer, mean over the
    steps after prefill, and the same ``floor(budget * n)`` of them stay at the anchor and all later layers of every
    decode step. Against ``VisionPulse(budget=...)`` it differs in one thing: the set does not change from step to
    step. Where it loses nothing, what makes prefill's set fail is the moment, not that it is one set. It costs a dense
    trace and saves nothing.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "hindsight"

    def start(self, layout: Layout) -> Selection:
        if layout.hindsight is None:
            raise ValueError("hindsight needs the model: use it through decode")
        selection = _HindsightSelection(self, layout)
        attended = layout.hindsight(selection.anchor).masked_fill(~layout.patches, -torch.inf)
        selection.kept = top_k(attended, selection.k, most_kept(self.budget, layout))
        return selection


class _HindsightSelection(FixedShareSelection):
    def choose(self, view: View) -> None:
        """Chosen already."""
