"""The world of scenes for a model that is tuned under a pattern: only its language model learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.pattern import ORDINARY, Pattern
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.training.batches import LANGUAGE
from visionpulse_analysis.testbed.training.evaluation import ask_all, right_answers
from visionpulse_analysis.testbed.training.evaluation_set import VALIDATION_SEED, build_items
from visionpulse_analysis.testbed.training.plan import MIX, Stage
from visionpulse_analysis.testbed.training.scoring import scores
from visionpulse_analysis.testbed.twins.streams import states_under
from visionpulse_analysis.testbed.worlds import TwinScenes

SCORED = 16  # scenes for validation on which a twin is scored


def tune(steps: int) -> tuple[Stage, ...]:
    """So many steps on the two larger sizes, four questions about each of four pictures."""
    return (Stage("tune", steps, {6: 0.4, 8: 0.6}, MIX, 4, 4, (2e-3, 2e-5)),)


@dataclass
class Patterned(TwinScenes):
    """Scenes, of which a model learns the traces under a `pattern`; its vision tower stays as it is.

    Parameters
    ----------
    pattern : Pattern
    plan : tuple of Stage
        Without drills: those show no picture, and a pattern is about nothing else.
    """

    pattern: Pattern = ORDINARY
    plan: tuple[Stage, ...] = field(default_factory=lambda: tune(160))

    def facts(self) -> dict[str, Any]:
        return {"visionpulse_pattern": self.pattern.to_dict()}

    def score(self, vlm: VLM) -> dict[str, Any]:
        """Share of right answers to each task, under the pattern and without it."""
        found = {}
        for label, pattern in (("under its pattern", self.pattern.to_dict()), ("without it", None)):
            vlm.model.config.visionpulse_pattern = pattern
            found[label] = {task: score_task(vlm, task) for task in TASKS}
        return found

    def loss(
        self, model, beside: torch.nn.Module, stage: Stage, seed: int, step: int
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        batch = self.batch(stage, seed, step).to(next(model.parameters()).device)
        return scores(model, batch, LANGUAGE, states_under(model, batch, self.pattern))


def score_task(vlm: VLM, task: str, **options: Any) -> float:
    """Share of right answers to a task on validation scenes of 256 patches; `options` are those of `decode`."""
    items = build_items({8: SCORED}, VALIDATION_SEED)
    return round(float(right_answers(items, task, ask_all(vlm, items, task, **options)).mean()), 4)
