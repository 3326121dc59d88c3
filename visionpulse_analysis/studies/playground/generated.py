"""Pictures and questions of the bundled worlds: that of the model which is asked, that of scenes for any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from visionpulse_analysis.experiments.samples import one_sample
from visionpulse_analysis.testbed.charts import questions as of_charts
from visionpulse_analysis.testbed.charts.drawing import render
from visionpulse_analysis.testbed.charts.evaluation import build_items
from visionpulse_analysis.testbed.scenes import questions as of_scenes

SIDE = 24  # patches of a chart, the largest that the model was scored on


class World(NamedTuple):
    """What a picture is called, the kinds of question about it, and how a numbered one is made."""

    name: str
    tasks: tuple[str, ...]
    make: Callable[[int, str], tuple[np.ndarray, str]]  # number, task -> uint8 [row_px, col_px, 3], question


def _scene(number: int, task: str) -> tuple[np.ndarray, str]:
    made = one_sample(seed=number, task=task)
    return made.image, made.question


def _chart(number: int, task: str) -> tuple[np.ndarray, str]:
    """The first chart from a number on that carries a question of this kind."""
    made = build_items(task, SIDE, 1, first_seed=number)[0]
    return render(made.chart), made.question.text


SCENES = World("scene", of_scenes.TASKS, _scene)
WORLDS = {"scenes": SCENES, "charts": World("chart", of_charts.TASKS, _chart)}


def world_of(model: str) -> World:
    """The world of a model, by its name."""
    return WORLDS.get(model, SCENES)
