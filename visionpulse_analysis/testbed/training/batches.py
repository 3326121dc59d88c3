"""Batches of scenes and drills, of which each is fixed by the state of its generator."""

from __future__ import annotations

import numpy as np

from visionpulse_analysis.testbed.scenes.questions import TASKS, Question, TokenTruth, ask, reason
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.scenes.tokens import SYSTEM_PROMPT, vocabulary
from visionpulse_analysis.testbed.training.packing import Batch, Language, pack_images

KINDS = ("template", "colour", "shape", "row", "column", "verdict", "number", "answer")
READ_OFF_THE_IMAGE = ("colour", "shape", "row", "column", "number")
ALL_TASKS = (*TASKS, "describe")
DRILL_TASKS = {"find": 0.4, "compare": 0.6}
DRILL_TARGET_WEIGHT = 0.3  # a searcher who mostly meets other objects first, so that "no" is as common as "yes"
LANGUAGE = Language(tuple(vocabulary()), SYSTEM_PROMPT, KINDS, ALL_TASKS, READ_OFF_THE_IMAGE)


def make_batch(
    rng: np.random.Generator,
    scene_seeds: list[int],
    cells: int,
    tasks: dict[str, float],
    questions_per_image: int,
) -> Batch:
    """Draw scenes and questions and pack them.

    tasks : task name -> weight. The same generator state always gives the same batch.
    """
    names, weights = list(tasks), np.array(list(tasks.values()))
    rows = []
    for seed in scene_seeds:
        scene = generate(seed, cells)
        drawn = rng.choice(names, size=questions_per_image, p=weights / weights.sum())
        asked = [ask(scene, str(task), rng) for task in drawn]
        rows.append((scene, [(q, reason(scene, q, rng)) for q in asked]))
    return pack(rows)


def make_drill(rng: np.random.Generator, scene_seeds: list[int]) -> Batch:
    """Draw small scenes and pack one question about each, without images. The same generator state, the same batch."""
    names, weights = list(DRILL_TASKS), list(DRILL_TASKS.values())
    rows = []
    for seed in scene_seeds:
        scene = generate(seed, 8, int(rng.integers(2, 6)))
        question = ask(scene, str(rng.choice(names, p=weights)), rng)
        rows.append((None, [(question, reason(scene, question, rng, target_weight=DRILL_TARGET_WEIGHT))]))
    return pack(rows)


def pack(rows: list[tuple[Scene | None, list[tuple[Question, list[TokenTruth]]]]]) -> Batch:
    """Pack scenes of one size with their questions and traces into one batch; a drill where no row has a scene."""
    return pack_images([(None if scene is None else scene.render(), said) for scene, said in rows], LANGUAGE)
