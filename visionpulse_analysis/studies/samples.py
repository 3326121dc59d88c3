"""Samples of a study: generated scenes with questions, or a folder of one's own images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionpulse_analysis.testbed.questions import TASKS, Question, ask
from visionpulse_analysis.testbed.scenes import Scene, generate

FIRST_STUDY_SEED = 10_000_000  # neither evaluation (small) nor training (large) scenes


@dataclass(frozen=True)
class Sample:
    """One question about one image. ``scene`` and ``truth`` are known for generated scenes only.

    image : uint8 [row_px, col_px, 3], or the path of a file.
    """

    id: str
    image: Any
    question: str
    scene: Scene | None = None
    truth: Question | None = None


def scene_samples(n: int, *, seed: int = 0, cells: int = 8, tasks: tuple[str, ...] = TASKS) -> list[Sample]:
    """Draw ``n`` scenes with one question each, the tasks in turn.

    Raises ValueError when ``n`` is below 1 or a task is unknown.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    samples = []
    for index in range(n):
        scene_seed = FIRST_STUDY_SEED + 1_000_000 * seed + index
        scene = generate(scene_seed, cells)
        rng = np.random.default_rng([scene_seed, 5])
        question = ask(scene, tasks[index % len(tasks)], rng)
        samples.append(Sample(f"scene-{scene_seed}", scene.render(), question.text, scene, question))
    return samples


def image_samples(folder: str | Path, question: str) -> list[Sample]:
    """One question about every image of a folder.

    Raises FileNotFoundError when the folder holds no image.
    """
    kinds = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    found = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in kinds)
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(kinds)}) in {folder}")
    return [Sample(path.stem, path, question) for path in found]
