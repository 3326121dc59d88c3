"""Baselines that rank as VisionPulse does but too early: once at prefill, or always one step behind.

Against ``VisionPulse(budget=...)`` at the same anchor and budget they differ in *when* they look and in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.anchored import FixedShare, FixedShareSelection
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.top_k import most_kept, top_k
from visionpulse_analysis.pruners.view import Layout, View


@dataclass(frozen=True)
class PrefillOnce(FixedShare):
    """Choose once, by prefill's last query, and keep that set for the whole run.

    At the anchor layer of prefill the patches are ranked by the head-mean logits of the last prompt token, as a static
    pruner such as FastV (arXiv 2403.06764) ranks them; the set holds at the anchor and all later layers of every decode
    step. Prefill itself stays dense, so that the first token equals that of the dense run; FastV hides the
    patches in prefill's later layers as well.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "prefill_once"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        return top_k(view.patch_logits().mean(dim=1), k, most_kept(self.budget, layout))

    def start(self, layout: Layout) -> Selection:
        return _PrefillSelection(self, layout)


class _PrefillSelection(FixedShareSelection):
    def observe_prefill(self, view: View) -> None:
        if view.layer == self.anchor:
            self.kept = self.pick(view)

    def choose(self, view: View) -> None:
        """Chosen already."""


@dataclass(frozen=True)
class LastStepOnly(FixedShare):
    """At every step, keep what the query of the *step before* ranked highest.

    The first decode step uses prefill's last query. The rank is the head-mean logit at the anchor layer, and the set
    holds at the anchor and all later layers: the choice of ``VisionPulse(budget=...)``, one step late.

    Parameters
    ----------
    budget, anchor_layer
        As in `FixedShare`.
    """

    name: ClassVar[str] = "last_step_only"

    def keep(self, view: View, layout: Layout, k: torch.Tensor) -> torch.Tensor:
        return top_k(view.patch_logits().mean(dim=1), k, most_kept(self.budget, layout))

    def start(self, layout: Layout) -> Selection:
        return _LastStepSelection(self, layout)


class _LastStepSelection(FixedShareSelection):
    coming: torch.Tensor | None = None  # what the step just seen leaves to the next one

    def observe_prefill(self, view: View) -> None:
        if view.layer == self.anchor:
            self.coming = self.pick(view)

    def choose(self, view: View) -> None:
        self.kept, self.coming = self.coming, self.pick(view)
