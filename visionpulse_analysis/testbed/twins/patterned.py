"""The world of scenes for a model that is tuned under a pattern: only its language model learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from visionpulse_analysis.pruners.pattern import ORDINARY, Pattern
from visionpulse_analysis.testbed.training.batches import LANGUAGE
from visionpulse_analysis.testbed.training.plan import MIX, Stage
from visionpulse_analysis.testbed.training.scoring import scores
from visionpulse_analysis.testbed.twins.streams import states_under
from visionpulse_analysis.testbed.worlds import Scenes


def tune(steps: int) -> tuple[Stage, ...]:
    """So many steps on the two larger sizes, four questions about each of four pictures."""
    return (Stage("tune", steps, {6: 0.4, 8: 0.6}, MIX, 4, 4, (2e-3, 2e-5)),)


@dataclass
class Patterned(Scenes):
    """Scenes, of which a model learns the traces under a `pattern`; its vision tower stays as it is.

    Parameters
    ----------
    pattern : Pattern
    plan : tuple of Stage
        Without drills: those show no picture, and a pattern is about nothing else.
    """

    pattern: Pattern = ORDINARY
    plan: tuple[Stage, ...] = field(default_factory=lambda: tune(160))

    def build(self, seed: int):
        model = super().build(seed)
        model.model.visual.requires_grad_(False)
        return model

    def prepare(self, model, *, seed: int, report: Callable[[str], None]) -> dict[str, float]:
        raise ValueError("a twin goes on from a published model, whose vision tower it keeps: give start")

    def loss(
        self, model, beside: torch.nn.Module, stage: Stage, seed: int, step: int
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        batch = self.batch(stage, seed, step).to(next(model.parameters()).device)
        return scores(model, batch, LANGUAGE, states_under(model, batch, self.pattern))
