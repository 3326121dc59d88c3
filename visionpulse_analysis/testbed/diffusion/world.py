"""The diffusion twin as a world: scenes, the bundled model's weights to begin with, and canvases to learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from visionpulse_analysis.testbed.diffusion.canvases import diffusion_loss, draw_batch
from visionpulse_analysis.testbed.training.model import build_model
from visionpulse_analysis.testbed.training.plan import Stage
from visionpulse_analysis.testbed.worlds import Scenes

FIRST_DIFFUSION_SEED = 1_400_000_000  # scenes that nothing else is trained on
DIRECT_SHARE = 0.33  # of the questions, which are answered at once
MIX = {"find": 0.45, "compare": 0.55}
DIFFUSION_PLAN = (
    Stage("adapt", 260, {4: 1.0}, MIX, 4, 3, (1.5e-3, 1.5e-3)),
    Stage("settle", 140, {4: 1.0}, MIX, 4, 3, (1.5e-3, 2e-5)),
)


class DiffusionScenes(Scenes):
    """Scenes whose answers are unmasked; the vision tower stays that of the bundled model."""

    plan = DIFFUSION_PLAN

    def build(self, seed: int):
        model = build_model(seed)
        model.model.visual.requires_grad_(False)
        return model

    def prepare(self, model, *, seed: int, report: Callable[[str], None]) -> dict[str, float]:
        raise ValueError("the diffusion twin is adapted from a trained model; give start, the folder of one")

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
