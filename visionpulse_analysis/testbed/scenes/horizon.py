"""Where a model reads scenes: rows and columns of true traces, with the image cut off from a layer on."""

from __future__ import annotations

import numpy as np

from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.scenes.questions import Question, TokenTruth, reason
from visionpulse_analysis.testbed.scenes.scene import Scene
from visionpulse_analysis.testbed.training import horizon
from visionpulse_analysis.testbed.training.batches import LANGUAGE, pack
from visionpulse_analysis.testbed.training.evaluation_set import Item

PLACES = ("row", "column")


def reading_horizon(vlm: VLM, items: list[Item]) -> dict[str, list[float]]:
    """Accuracy of rows and columns when the image is cut off from a layer on, see :func:`horizon.reading_horizon`."""
    return horizon.reading_horizon(read_tokens(vlm, items))


def read_tokens(vlm: VLM, items: list[Item]) -> dict[str, list[np.ndarray]]:
    """Which rows and columns of the true traces of the find and count questions are predicted right.

    Returns
    -------
    dict
        kind of token -> one array per item: bool [n_layers + 1, token], see :func:`horizon.read_words`.
    """
    rows: list[tuple[Scene | None, list[tuple[Question, list[TokenTruth]]]]] = [
        (item.scene, _true_traces(item)) for item in items
    ]
    batches = (pack(rows[start : start + 8]) for start in range(0, len(rows), 8))
    return horizon.read_words(vlm, batches, LANGUAGE, PLACES)


def _true_traces(item: Item) -> list[tuple[Question, list[TokenTruth]]]:
    rng = np.random.default_rng([item.scene.seed, 4])
    asked = [item.questions["find"], item.questions["count"]]
    return [(question, reason(item.scene, question, rng)) for question in asked]
