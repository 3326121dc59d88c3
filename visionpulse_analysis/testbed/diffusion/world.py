"""The diffusion twin as a world: scenes, the bundled model's weights to begin with, and canvases to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.diffusion.canvases import diffusion_loss, draw_batch
from visionpulse_analysis.testbed.diffusion.twin import score_twin
from visionpulse_analysis.testbed.training.plan import Stage
from visionpulse_analysis.testbed.worlds import TwinScenes

FIRST_DIFFUSION_SEED = 1_400_000_000  # scenes that nothing else is trained on
DIRECT_SHARE = 0.33  # of the questions, which are answered at once
MIX = {"find": 0.45, "compare": 0.55}
DIFFUSION_PLAN = (
    Stage("adapt", 260, {4: 1.0}, MIX, 4, 3, (1.5e-3, 1.5e-3)),
    Stage("settle", 140, {4: 1.0}, MIX, 4, 3, (1.5e-3, 2e-5)),
)


class DiffusionScenes(TwinScenes):
    """Scenes whose answers are unmasked; the vision tower stays that of the bundled model."""

    plan = DIFFUSION_PLAN

    anchored = False  # the reading horizon is of models that write word after word

    def score(self, vlm: VLM) -> dict[str, Any]:
        return score_twin(vlm)

    def loss(
        self, model, beside: torch.nn.Module, stage: Stage, seed: int, step: int
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        rng = np.random.default_rng([seed, step, 7])
        sizes, weights = list(stage.sizes), np.array(list(stage.sizes.values()))
        cells, first = int(rng.choice(sizes, p=weights / weights.sum())), FIRST_DIFFUSION_SEED + 64 * step
        seeds = range(first, first + stage.images)
        batch, weight = draw_batch(rng, seeds, cells, stage.tasks, stage.questions, DIRECT_SHARE)
        return diffusion_loss(model, batch.to(next(model.parameters()).device), weight)


DIFFUSION = DiffusionScenes()
