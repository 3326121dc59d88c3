"""Samples of a study: generated scenes with questions, or a folder of one's own images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionpulse_analysis._util.files import visible_files
from visionpulse_analysis._util.ledger import note
from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.testbed.charts.chart import Chart
from visionpulse_analysis.testbed.charts.chart import generate as generate_chart
from visionpulse_analysis.testbed.charts.drawing import render
from visionpulse_analysis.testbed.charts.questions import TASKS as CHART_TASKS
from visionpulse_analysis.testbed.charts.questions import ask as ask_chart
from visionpulse_analysis.testbed.charts.questions import can_ask
from visionpulse_analysis.testbed.scenes.questions import TASKS, Question, ask
from visionpulse_analysis.testbed.scenes.scene import Scene, generate
from visionpulse_analysis.testbed.truth import Asked, Picture

if TYPE_CHECKING:
    from visionpulse_analysis.models.loading import VLM

REDRAWN = 64  # seeds of a chart that must carry a task; the rarest is carried by two charts of five
FIRST_STUDY_SEED = 10_000_000  # neither evaluation (small) nor training (large) scenes


@dataclass(frozen=True)
class Sample:
    """One question about one image. ``scene`` (or chart) and ``truth`` are known for generated pictures only."""

    id: str
    image: Any  # uint8 [row_px, col_px, 3], or the path of a file
    question: str
    scene: Picture | None = None
    truth: Asked | None = None


def scene_samples(n: int, *, seed: int = 0, cells: int = 8, tasks: tuple[str, ...] = TASKS) -> list[Sample]:
    """Draw ``n`` scenes with one question each, the tasks in turn.

    Raises ValueError when ``n`` is below 1 or a task is unknown.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    samples = []
    for index in range(n):
        scene, question = study_scene(index, seed=seed, cells=cells, tasks=tasks)
        samples.append(Sample(f"scene-{scene.seed}", scene.render(), question.text, scene, question))
    return samples


def chart_samples(n: int, *, seed: int = 0, side: int = 24, tasks: tuple[str, ...] = CHART_TASKS) -> list[Sample]:
    """Draw ``n`` charts of ``side`` x ``side`` patches with one question each, the tasks in turn.

    A chart that does not carry its task is drawn again. Raises ValueError when ``n`` is below 1 or a task is unknown.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    samples, first = list[Sample](), FIRST_STUDY_SEED + 1_000_000 * seed
    for index in range(n):
        task = tasks[index % len(tasks)]
        charts = (generate_chart(first + REDRAWN * index + again, side) for again in range(REDRAWN))
        chart = next(one for one in charts if can_ask(one, task))
        question = ask_chart(chart, task, np.random.default_rng([chart.seed, 5]))
        samples.append(Sample(f"chart-{chart.seed}", render(chart), question.text, chart, question))
    return samples


def generated_samples(vlm: VLM, n: int, *, seed: int = 0) -> list[Sample]:
    """Draw ``n`` pictures with questions of the world that a model was trained on: charts or, by default, scenes."""
    from visionpulse_analysis.testbed.charts.evaluation import speaks_of_charts  # imports torch

    return chart_samples(n, seed=seed) if speaks_of_charts(vlm) else scene_samples(n, seed=seed)


def calibration_samples(samples: Sequence[Sample], n: int, *, seed: int = 0) -> list[Sample]:
    """Samples to find parameters on: scenes that are not among those of `scene_samples` with this seed.

    For images of one's own, of which there are no others, the first ``n``; no answer is needed.
    """
    if any(one.scene is None for one in samples):
        return list(samples[:n])
    return (chart_samples if isinstance(samples[0].scene, Chart) else scene_samples)(n, seed=seed + 1)


def study_scene(index: int, *, seed: int, cells: int, tasks: Sequence[str]) -> tuple[Scene, Question]:
    """Scene and question number ``index`` of `scene_samples`, without its picture."""
    scene_seed = FIRST_STUDY_SEED + 1_000_000 * seed + index
    scene = generate(scene_seed, cells)
    return scene, ask(scene, tasks[index % len(tasks)], np.random.default_rng([scene_seed, 5]))


def image_samples(folder: str | Path, question: str) -> list[Sample]:
    """One question about every image of a folder.

    Raises FileNotFoundError when the folder holds no image.
    """
    found = image_files(folder)
    # Numbered, because ids are file names: "a.png" and "a.jpg" differ, spaces are not allowed.
    return [
        Sample(f"image-{number:04d}-{re.sub('[^A-Za-z0-9]+', '-', path.stem)[:80]}", path, question)
        for number, path in enumerate(found)
    ]


def image_files(folder: str | Path) -> list[Path]:
    """The images of a folder, sorted, hidden ones left out; raises FileNotFoundError when it holds none."""
    kinds = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    found = sorted(visible_files(Path(folder), kinds)) if Path(folder).is_dir() else []
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(kinds)}) in {folder}")
    _note_content(Path(folder), found)
    return found


def _note_content(place: Path, files: Sequence[Path]) -> None:
    """Figures say what pictures of one's own held: their paths stay the same when they are changed."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    note("images", place.name, digest.hexdigest())


def one_sample(image: str = "", question: str = "", *, seed: int = 0, task: str = "find") -> Sample:
    """One's own image and question, or a generated scene where the path ``image`` is empty.

    A scene depends on ``seed`` alone; an empty ``question`` becomes one of ``task`` about it.

    Raises ValueError for an image without a question, FileNotFoundError for a missing image.
    """
    if image:
        if not question.strip():
            raise ValueError(f"the image {image} comes without a question; ask something")
        own = Sample("own-image", read_image(image), question)
        _note_content(Path(image), [Path(image)])
        return own
    scene_seed = FIRST_STUDY_SEED + 1_000_000 * seed
    scene = generate(scene_seed)
    if question.strip():
        return Sample(f"scene-{scene_seed}-own-question", scene.render(), question, scene)
    asked = ask(scene, task, np.random.default_rng([scene_seed, 5]))
    return Sample(f"scene-{scene_seed}-{task}", scene.render(), asked.text, scene, asked)


def another_sample(sample: Sample, image: str = "", question: str = "", *, seed: int = 0) -> Sample | None:
    """A second question about the picture of `sample`, which `one_sample` made of the same ``image`` and ``seed``.

    An empty ``question`` becomes one about the scene. None where that would be the question again: about a picture of
    one's own only its owner can ask something else.
    """
    asked = question if question.split() != sample.question.split() else ""
    if image and not asked.strip():
        return None
    for task in ("find", *TASKS):
        other = one_sample(image, asked, seed=seed, task=task)
        if other.question.split() != sample.question.split():
            return other
    return None


def describe_samples(samples: list[Sample]) -> str:
    """Say in one sentence what is known of the samples, and so which parts of a study are left out."""
    count = len(samples)
    if all(sample.truth is not None for sample in samples):
        drawn, things = ("chart", "part") if isinstance(samples[0].scene, Chart) else ("scene", "object")
        return f"{count} generated {drawn}{'s' * (count > 1)}: every {things} and every right answer is known."
    if all(sample.scene is not None for sample in samples):
        return (
            f"{count} generated scene{'s' * (count > 1)} with a question of your own: the objects are known, the right "
            "answers are not, so accuracy is left out."
        )
    return (
        f"{count} image{'s' * (count > 1)} of your own: what they show is not known, so everything that needs the "
        "truth is left out: kinds of token, named objects, right answers and detours."
    )
