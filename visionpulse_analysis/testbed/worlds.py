"""What a training run trains on: a world draws pictures and conversations, and builds the model that learns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.scenes.horizon import reading_horizon
from visionpulse_analysis.testbed.scenes.scene import COLOURS
from visionpulse_analysis.testbed.training.batches import ALL_TASKS, LANGUAGE, make_batch, make_drill
from visionpulse_analysis.testbed.training.evaluation_set import VALIDATION_SEED, build_items
from visionpulse_analysis.testbed.training.model import build_model
from visionpulse_analysis.testbed.training.packing import Batch, Language
from visionpulse_analysis.testbed.training.plan import FIRST_TRAINING_SEED, FIRST_VISION_SEED, PLAN, VISION_STEPS, Stage
from visionpulse_analysis.testbed.training.scoring import scores
from visionpulse_analysis.testbed.training.vision import pretrain_vision

DRILL_ROWS = 64
VALIDATION_CELLS = 8


class World(Protocol):
    """What a trainer asks of a world."""

    @property
    def plan(self) -> Sequence[Any]:
        """Its curriculum: dataclasses with name, steps, rate and until; the rest of a stage is for the world."""
        ...

    @property
    def shown(self) -> tuple[str, ...]:
        """The scores that are shown while it is trained, as soon as there are any."""
        ...

    @property
    def language(self) -> Language:
        """The words that its model knows and how it is spoken to."""
        ...

    @property
    def stored(self) -> torch.dtype:
        """How the weights of a published model are stored; it computes in float32."""
        ...

    pictures: ClassVar[dict[str, Any]]
    """What its pictures are made of, as the configuration of its model states it (`unlike_training`)."""

    def build(self, seed: int) -> Any:
        """A freshly initialised model."""
        ...

    def beside(self, model, seed: int) -> torch.nn.Module:
        """What is trained beside the model and is no part of it; a module without parameters for nothing."""
        ...

    def prepare(self, model, *, seed: int, report: Callable[[str], None]) -> dict[str, float]:
        """Train what comes before the plan, in place, and return its scores."""
        ...

    def loss(
        self, model, beside: Any, stage: Any, seed: int, step: int
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        """Loss of one step, a function of (seed, step), and teacher-forced (right, total) by name."""
        ...

    def horizon(self, vlm: VLM, pictures: int) -> dict[str, list[float]]:
        """Where a published model reads, on validation pictures: by kind of word, as of ``reading_horizon``."""
        ...


class Scenes:
    """Coloured shapes on a grid; the vision tower is trained before the plan begins."""

    plan = PLAN
    language = LANGUAGE
    stored = torch.float32
    shown = (*ALL_TASKS, "row", "column", "verdict")
    pictures: ClassVar[dict[str, Any]] = {
        "what": "generated scenes of coloured shapes",
        "paper": [217, 247],
        "colours": [list(colour) for colour in COLOURS.values()],
    }

    def build(self, seed: int):
        return build_model(seed)

    def beside(self, model, seed: int) -> torch.nn.Module:
        return torch.nn.Module()

    def prepare(self, model, *, seed: int, report: Callable[[str], None]) -> dict[str, float]:
        return pretrain_vision(model, steps=VISION_STEPS, seed=seed, first_scene=FIRST_VISION_SEED, report=report)

    def batch(self, stage: Stage, seed: int, step: int) -> Batch:
        """What a step is trained on, a function of (seed, step)."""
        rng = np.random.default_rng([seed, step])
        sizes = list(stage.sizes)
        cells = int(rng.choice(sizes, p=np.array([stage.sizes[s] for s in sizes]) / sum(stage.sizes.values())))
        first = FIRST_TRAINING_SEED + 64 * step
        # Drawn only where there are drills: each draw is part of what makes a run repeatable.
        if stage.drills and rng.random() < stage.drills:
            return make_drill(rng, list(range(first, first + DRILL_ROWS)))
        return make_batch(rng, list(range(first, first + stage.images)), cells, stage.tasks, stage.questions)

    def loss(
        self, model, beside: torch.nn.Module, stage: Stage, seed: int, step: int
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        return scores(model, self.batch(stage, seed, step).to(next(model.parameters()).device))

    def horizon(self, vlm: VLM, pictures: int) -> dict[str, list[float]]:
        return reading_horizon(vlm, build_items({VALIDATION_CELLS: pictures}, VALIDATION_SEED))


class TwinScenes(Scenes):
    """Scenes for a twin of the bundled model, which goes on from its weights; the vision tower stays as it is."""

    anchored: ClassVar[bool] = True  # whether its anchor is measured anew, or stays that of the bundled model

    def build(self, seed: int):
        model = super().build(seed)
        model.model.visual.requires_grad_(False)
        return model

    def prepare(self, model, *, seed: int, report: Callable[[str], None]) -> dict[str, float]:
        raise ValueError("a twin goes on from a published model, whose vision tower it keeps: give start")

    def facts(self) -> dict[str, Any]:
        """What its configuration says beside that of the bundled model: name -> JSON-ready."""
        return {}

    def score(self, vlm: VLM) -> dict[str, Any]:
        """Scores of the published twin on validation scenes, JSON-ready."""
        raise NotImplementedError


SCENES = Scenes()
