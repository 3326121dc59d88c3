"""The fixed evaluation set: scenes with one question of each task, stored with their sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from visionpulse_analysis.testbed.scenes.questions import TASKS, Question, ask
from visionpulse_analysis.testbed.scenes.scene import Scene, generate

SIZES = {4: 150, 6: 150, 8: 400}  # cells per side -> scenes
VALIDATION_SEED = 500_000  # validation scenes, for choosing a checkpoint, start here
UNTRAINED_SIZES = {5: 100, 7: 100, 10: 100}  # cells per side that no training scene had -> scenes
UNTRAINED_SEED = 600_000


@dataclass(frozen=True)
class Item:
    """One scene and its questions, by task."""

    scene: Scene
    questions: dict[str, Question]


def build_items(sizes: dict[int, int], first_seed: int = 0) -> list[Item]:
    """Generate scenes of the given sizes with one question of each task, from consecutive seeds."""
    items, seed = [], first_seed
    for cells, count in sizes.items():
        for _ in range(count):
            scene = generate(seed, cells)
            rng = np.random.default_rng([seed, cells, 2])
            items.append(Item(scene, {task: ask(scene, task, rng) for task in TASKS}))
            seed += 1
    return items


def write_items(items: Iterable[Item], path: Path) -> str:
    """Write one JSON line per scene, and the file's sha256 beside it; returns the sha256."""
    lines = [
        json.dumps(
            {"scene": item.scene.to_dict(), "questions": {t: asdict(q) for t, q in item.questions.items()}},
            sort_keys=True,
        )
        for item in items
    ]
    content = "\n".join(lines).encode() + b"\n"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
    return digest


def read_items(path: Path) -> list[Item]:
    """Read an evaluation set.

    Raises
    ------
    FileNotFoundError
        If the file or its sha256 is missing.
    ValueError
        If the content is not what the sha256 says.
    """
    for needed in (path, path.with_suffix(".sha256")):
        if not needed.exists():
            raise FileNotFoundError(f"no evaluation set at {needed}")
    content = path.read_bytes()
    stated = path.with_suffix(".sha256").read_text().split()[0]
    found = hashlib.sha256(content).hexdigest()
    if found != stated:
        raise ValueError(f"{path} was changed: sha256 {found}, expected {stated}; restore it from the repository")
    items = []
    for line in content.decode().splitlines():
        data = json.loads(line)
        questions = {task: Question(**{**q, "targets": tuple(q["targets"])}) for task, q in data["questions"].items()}
        items.append(Item(Scene.from_dict(data["scene"]), questions))
    return items
