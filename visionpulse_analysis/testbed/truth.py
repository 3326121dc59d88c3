"""What the words of a trace are about, in any world of which the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.testbed.charts import questions as of_charts
from visionpulse_analysis.testbed.charts import truth as charts
from visionpulse_analysis.testbed.charts.chart import Chart
from visionpulse_analysis.testbed.charts.reasoning import FROM_IMAGE
from visionpulse_analysis.testbed.charts.regions import region
from visionpulse_analysis.testbed.scenes import questions as of_scenes
from visionpulse_analysis.testbed.scenes import truth as scenes
from visionpulse_analysis.testbed.scenes.scene import Scene

Picture = Scene | Chart
Asked = of_scenes.Question | of_charts.Question
OF_SCENES = ("colour", "shape", "row", "column", "verdict", "number", "template", "answer")
SHOWN_KINDS = (*(kind for kind in (*FROM_IMAGE, "result") if kind not in OF_SCENES), *OF_SCENES)  # those of text last


def kinds_said(picture: Picture, question: Asked | None, tokens: Sequence[str]) -> list[str]:
    """The kind of every token of a trace, in the words of its world."""
    return [truth.kind for truth in _annotated(picture, question, tokens)]


def parts_said(picture: Picture, question: Asked | None, tokens: Sequence[str], grid: PatchGrid) -> np.ndarray:
    """Patches that show what every token is about: bool [token, patch], none for words of text and unknown things.

    Raises
    ------
    ValueError
        If a chart was not read at its own size, so that its patches are not those of the model.
    """
    truths = _annotated(picture, question, tokens)
    if isinstance(picture, Chart):
        if len(grid) != picture.side**2:
            raise ValueError(f"a chart of {picture.side} x {picture.side} patches was read as {len(grid)} patches")
        return np.array([region(picture, truth.about) for truth in truths]).reshape(len(tokens), len(grid))
    where = np.vstack([scenes.object_patches(picture, grid), np.zeros((1, len(grid)), dtype=bool)])
    return where[[-1 if truth.object is None else truth.object for truth in truths]]


def detours(picture: Picture, question: Asked, words: Sequence[str]) -> int:
    """How many inspections of a trace went to things of the picture that the question is not about."""
    if isinstance(picture, Chart):
        sought = {picture.labels[mark] for mark in asked_of_chart(question).marks} if picture.labels else set()
        said = scenes.words_of(words)
        seen = [label for see, label in pairwise(said) if see == "see" and label in picture.labels]
        return sum(label not in sought for label in seen)
    return scenes.detours(picture, asked_of_scene(question), list(words))


def asked_of_chart(question: Asked | None) -> of_charts.Question:
    """The same question, of a chart; ValueError where it is none."""
    if not isinstance(question, of_charts.Question):
        raise ValueError(f"what a trace about a chart says is known for its own questions, got {question!r}")
    return question


def asked_of_scene(question: Asked | None) -> of_scenes.Question:
    """The same question, of a scene; ValueError where it is none."""
    if not isinstance(question, of_scenes.Question):
        raise ValueError(f"what a trace about a scene says is known for its own questions, got {question!r}")
    return question


def _annotated(picture: Picture, question: Asked | None, tokens: Sequence[str]) -> list[Any]:
    if isinstance(picture, Chart):
        return charts.annotate(picture, asked_of_chart(question), tokens)
    return scenes.annotate(picture, list(tokens))
