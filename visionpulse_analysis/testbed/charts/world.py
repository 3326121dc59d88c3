"""The world of charts, as `Trainer` trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.charts.chart import COLOURS, Chart, generate
from visionpulse_analysis.testbed.charts.dense import DENSE, practise
from visionpulse_analysis.testbed.charts.drawing import INK, render
from visionpulse_analysis.testbed.charts.evaluation import read_words
from visionpulse_analysis.testbed.charts.language import LANGUAGE
from visionpulse_analysis.testbed.charts.plan import FIRST_TRAINING_SEED, MOST_IMAGES, PLAN, ChartStage
from visionpulse_analysis.testbed.charts.questions import TASKS, Question, ask, can_ask
from visionpulse_analysis.testbed.charts.reasoning import TokenTruth, reason
from visionpulse_analysis.testbed.charts.tower import PatchHeads, outputs_of, patch_labels
from visionpulse_analysis.testbed.charts.words import vocabulary
from visionpulse_analysis.testbed.training.horizon import reading_horizon
from visionpulse_analysis.testbed.training.model import Size, build_model
from visionpulse_analysis.testbed.training.packing import Batch, pack_images, patches_of
from visionpulse_analysis.testbed.training.scoring import scores

SIZE = Size(vision_width=96, vision_mlp=192)
VALIDATION_SIDE, VALIDATION_SEED = 16, 500_000


class Charts:
    """Charts, and the model that learns to read them."""

    plan = PLAN
    language = LANGUAGE
    stored = torch.bfloat16
    shown = ("see letter", "see top", "place", "label", "tick", "part", "over", "glance", *TASKS)
    pictures: ClassVar[dict[str, Any]] = {
        "what": "generated charts",
        "paper": [222, 255],
        "colours": [list(colour) for colour in (*COLOURS.values(), INK)],
    }

    def build(self, seed: int):
        """A freshly initialised model."""
        return build_model(seed, SIZE, vocabulary())

    def beside(self, model, seed: int) -> torch.nn.Module:
        """The read-outs of the tower's patches, trained beside the model."""
        outputs = 1 + len(model.config.vision_config.deepstack_visual_indexes)
        return PatchHeads(outputs, model.config.text_config.hidden_size, seed)

    def prepare(self, model, *, seed: int, report: Callable[[str], None]) -> dict[str, float]:
        """Nothing comes before the plan: the tower's training is its first stage."""
        return {}

    def loss(
        self, model, beside: PatchHeads, stage: ChartStage, seed: int, step: int
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        """Loss of one step, a function of (seed, step), and (right, total) by label, kind of token and task."""
        rng = np.random.default_rng([seed, step])
        sides = list(stage.sizes)
        side = int(rng.choice(sides, p=np.array([stage.sizes[s] for s in sides]) / sum(stage.sizes.values())))
        first = FIRST_TRAINING_SEED + MOST_IMAGES * step
        count = max(1, stage.patches // side**2)
        charts = [generate(first + i, side, kind) for i, kind in enumerate(_kinds(rng, stage.kinds, count))]
        device = beside.weight.device
        labels = torch.from_numpy(np.concatenate([patch_labels(chart) for chart in charts])).to(device)
        if not stage.tasks:
            pixels = torch.from_numpy(np.concatenate([patches_of(render(chart)) for chart in charts])).to(device)
            grid_thw = torch.tensor([[1, side, side]] * len(charts), device=device)
            return beside.loss(outputs_of(model.model.visual(pixels, grid_thw=grid_thw)), labels)
        batch = make_batch(rng, charts, stage.tasks, stage.questions).to(device)
        seen: list[torch.Tensor] = []
        # Read at once: the model cuts the tower's output into pictures in place.
        hook = model.model.visual.register_forward_hook(lambda module, given, out: seen.extend(outputs_of(out)))
        try:
            loss, counts = scores(model, batch, LANGUAGE)
        finally:
            hook.remove()
        tower, seen_right = beside.loss(seen, labels)
        return loss + stage.tower * tower, counts | seen_right

    def horizon(self, vlm: VLM, pictures: int) -> dict[str, list[float]]:
        """Where it reads small charts, of which true traces are fed in."""
        return reading_horizon(read_words(vlm, pictures, VALIDATION_SIDE, VALIDATION_SEED))


def _kinds(rng: np.random.Generator, weights: dict[str, float], count: int) -> list[str | None]:
    if not weights:
        return [None] * count
    share = np.array(list(weights.values())) / sum(weights.values())
    return [str(kind) for kind in rng.choice(list(weights), size=count, p=share)]


def make_batch(rng: np.random.Generator, charts: list[Chart], tasks: dict[str, float], questions: int) -> Batch:
    """Draw questions about charts of one size and pack them; tasks that a chart does not carry are not drawn."""
    rows = []
    for chart in charts:
        possible = [task for task in tasks if task in DENSE or can_ask(chart, task)]
        weights = np.array([tasks[task] for task in possible])
        drawn = rng.choice(possible, size=questions, p=weights / weights.sum())
        rows.append((render(chart), [converse(chart, str(task), rng) for task in drawn]))
    return pack_images(rows, LANGUAGE)


def converse(chart: Chart, task: str, rng: np.random.Generator) -> tuple[Question, list[TokenTruth]]:
    """Draw one conversation of a task, of questions or of practice."""
    if task in DENSE:
        return practise(chart, task, rng)
    question = ask(chart, task, rng)
    return question, reason(chart, question, rng)


CHARTS = Charts()
