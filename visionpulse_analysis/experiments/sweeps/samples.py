"""What a sweep asks: scenes, the images of a folder, the rows of a table or benchmark. No picture is decoded here."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.experiments.judging import Reference
from visionpulse_analysis.experiments.samples import image_files, study_scene
from visionpulse_analysis.experiments.sweeps.benchmarks import Benchmark, TablePicture, read_benchmark
from visionpulse_analysis.experiments.sweeps.config import Arm, Model, SweepConfig
from visionpulse_analysis.models.asking import are_turns, plain_turns

COLUMNS = ("image", "question", "answer", "id")


@dataclass(frozen=True)
class SweepSample:
    """One question about one image, several, or a generated scene."""

    name: str  # unique within the sweep
    question: str
    expected: str | None  # the right answer, several as a JSON list, None where it is not known
    task: str | None
    images: tuple[str | TablePicture, ...]  # absolute paths, or where in a table they lie
    scene: tuple[int, int] | None  # seed and cells of a generated scene, instead of images
    key: str  # what tells this sample from any other
    reference: Reference | None = None  # by which rule an answer is judged, and against what; None where nobody knows
    grading: str | None = None  # what a judging model is to be asked, with {PREDICTION} in it
    turns: str | None = None  # where it is asked in several, these as JSON; question is the last of them then

    @property
    def asked(self) -> Any:
        """What the model is asked, a text or turns."""
        return self.question if self.turns is None else json.loads(self.turns)


def read_samples(config: SweepConfig) -> list[SweepSample]:
    """All samples of a sweep, in order.

    Raises FileNotFoundError: the folder or table does not exist, or the folder holds no image; ValueError: a row of the
    table lacks something, or two rows are the same sample; file and line (of a benchmark: row) are named.
    """
    scenes, folder, table = config.samples.scenes, config.samples.folder, config.samples.table
    if scenes is not None:
        drawn = (study_scene(i, seed=scenes.seed, cells=scenes.cells, tasks=scenes.tasks) for i in range(scenes.n))
        return [
            SweepSample(
                name=f"scene-{scene.seed}",
                question=asked.text,
                expected=asked.answer,
                task=asked.task,
                images=(),
                scene=(scene.seed, scenes.cells),
                key=json.dumps([scene.seed, scenes.cells, asked.text]),
                reference=_by_words(asked.answer),
            )
            for scene, asked in drawn
        ]
    if folder is not None:
        if isinstance(folder.question, str) and not folder.question.strip():
            raise ValueError("samples: folder: question is empty; ask something")
        files = image_files(config.folder / folder.path)
        base = config.folder / folder.path
        digests: dict[Path, str | None] = {}
        return [_of_files(base, [path.name], folder.question, folder.answer, path.name, digests) for path in files]
    if config.samples.benchmark is not None:
        return _of_benchmark(config.folder / config.samples.benchmark.path, config.samples.benchmark)
    if table is None:
        raise ValueError("samples: expected one of scenes, folder, table and benchmark")
    return _read_table(config.folder / table.path)


def _of_files(
    base: Path,
    images: list[str],
    asked: Any,
    answer: str | None,
    name: str | None,
    digests: dict[Path, str | None],
) -> SweepSample:
    """``digests`` keeps what was read: many rows may ask about one picture."""
    messages, question = plain_turns(asked, len(images)) if are_turns(asked) else (None, asked)
    turns = None if messages is None else json.dumps(messages)
    for text in (*images, question, answer or "", name or ""):
        _check_text(text)
    paths = [base / image for image in images]
    for path in paths:
        if path not in digests:
            digests[path] = _digest(path)
    short = hashlib.sha256((turns or question).encode()).hexdigest()[:6]
    return SweepSample(
        name=name or f"{'+'.join(images)}-{short}",
        question=question,
        expected=answer,
        task=None,
        images=tuple(str(path) for path in paths),
        scene=None,
        key=json.dumps([images, [digests[path] for path in paths], turns or question]),
        reference=_by_words(answer),
        turns=turns,
    )


def _by_words(answer: str | None) -> Reference | None:
    return None if answer is None else Reference("words", (answer,))


def _of_benchmark(path: Path, asked: Benchmark) -> list[SweepSample]:
    digests: dict[str, str | None] = {}
    samples = []
    for row in read_benchmark(path, asked):
        for picture in row.pictures:
            if isinstance(picture, str) and picture not in digests:
                digests[picture] = _digest(Path(picture))
        seen = [digests[one] if isinstance(one, str) else one.digest for one in row.pictures]
        answers = row.reference.answers
        samples.append(
            SweepSample(
                name=f"{asked.name}-{row.index}",
                question=row.text,
                expected=answers[0]
                if len(answers) == 1
                else json.dumps(answers, ensure_ascii=False)
                if answers
                else None,
                task=row.category,
                images=row.pictures,
                scene=None,
                key=json.dumps([asked.name, row.index, seen, row.text]),
                reference=row.reference,
                grading=row.grading,
            )
        )
    return samples


def _digest(path: Path) -> str | None:
    """A picture replaced by another one, or mended, is a new sample; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is no valid text ({error.reason}); rename or rewrite it") from error


def _read_table(path: Path) -> list[SweepSample]:
    if not path.is_file():
        raise FileNotFoundError(f"no table of samples at {path}")
    lines: dict[str, int] = {}
    digests: dict[Path, str | None] = {}
    samples = []
    for line, row in _rows(path):
        where = f"{path.name}, line {line}"
        images: list[Any] = row["image"] if isinstance(row["image"], list) else [row["image"]]
        if not images or not all(isinstance(image, str) and image.strip() for image in images):
            raise ValueError(f"{where}: image must be a path or a list of paths, got {row['image']!r}")
        if not are_turns(row["question"]) and (not isinstance(row["question"], str) or not row["question"].strip()):
            raise ValueError(f"{where}: the question is empty (got {row['question']!r}); ask something")
        answer, name = _text(row, "answer", where), _text(row, "id", where)
        try:
            sample = _of_files(path.parent, images, row["question"], answer, name, digests)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if sample.name in lines:
            raise ValueError(
                f"{where}: the same sample {sample.name!r} as in line {lines[sample.name]}; give other ids"
            )
        lines[sample.name] = line
        samples.append(sample)
    if not samples:
        raise ValueError(f"{path.name} holds no rows")
    return samples


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row; of a Parquet file, the number of the row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from enumerate(_parquet_rows(path), 1)
        return
    if kind not in (".csv", ".jsonl", ".ndjson"):
        raise ValueError(f"{path.name} is neither .csv, .jsonl nor .parquet")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not in UTF-8 ({error}); save it as UTF-8") from error
    with io.StringIO(text, newline="") as file:
        if kind == ".csv":
            reader = csv.DictReader(file, strict=True)
            try:
                _check_columns(reader.fieldnames or [], path)
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(f"{path.name}, line {reader.line_num}: not as many cells as columns")
                    yield reader.line_num, row
            except csv.Error as error:
                raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from error
        else:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _json_row(line, path, number)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path.name} needs pyarrow; install visionpulse-analysis[parquet], or give a .csv or .jsonl")
    try:
        table = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except (ValueError, OSError) as error:  # pyarrow's own are ValueErrors
        raise ValueError(f"{path.name} is no readable Parquet file: {error}") from error
    _check_columns(list(table.columns), path)
    plain: Any = table.astype(object).where(table.notna(), None)
    for row in (rows := plain.to_dict("records")):
        row["image"] = row["image"].tolist() if isinstance(row["image"], np.ndarray) else row["image"]
    return rows


def _json_row(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name}, line {number}: no valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path.name}, line {number}: expected an object with image and question, got {row!r}")
    _check_columns(row, path)
    return row


def _check_columns(found: Any, path: Path) -> None:
    missing = [name for name in ("image", "question") if name not in found]
    if missing:
        raise ValueError(f"{path.name}: no column {missing[0]!r}; it has {', '.join(map(repr, found))}")
    for name in found:
        if list(found).count(name) > 1:
            raise ValueError(f"{path.name}: the column {name!r} stands twice; keep one")
        plain = str(name).strip().lower()
        if plain in COLUMNS and plain != name:
            raise ValueError(f"{path.name}: column {name!r} would be overlooked; call it {plain!r}")


def _text(row: dict[str, Any], name: str, where: str) -> str | None:
    """A cell as text; None where it is empty."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(f"{where}: {name} must be text, got {value!r}")
    return None if value is None or not str(value).strip() else str(value).strip()


@dataclass(frozen=True, slots=True)
class Job:
    """One trace to make. ``id`` is its name in the store: readable, and a hash of all that decides what it holds."""

    id: str
    sample: SweepSample
    model: Model
    arm: Arm
    seed: int

    @property
    def row_seed(self) -> int:
        """The seed of the decode: equal for all models and pruners, so that the arms of a comparison share draws."""
        return int(hashlib.sha256(f"{self.seed} {self.sample.name}".encode()).hexdigest()[:12], 16)


def plan(config: SweepConfig) -> list[Job]:
    """All jobs in the order of the table: model, sample, pruner, seed.

    Raises FileNotFoundError, ValueError: as `read_samples`; or two jobs are the same.
    """
    samples = read_samples(config)
    jobs = [
        Job(_id(sample, model, arm, seed, recipe), sample, model, arm, seed)
        for model in config.models
        for recipes in [[json.dumps(config.recipe(model, arm), sort_keys=True) for arm in config.pruners]]
        for sample in samples
        for arm, recipe in zip(config.pruners, recipes, strict=True)
        for seed in config.seeds
    ]
    seen: dict[str, Job] = {}
    for job in jobs:
        same = seen.setdefault(job.id, job)
        if same is not job:
            raise ValueError(
                f"{_names(job)} and {_names(same)} would be the same trace {job.id}; leave one of them out"
            )
    return jobs


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Split the jobs of one model into batches of ``size`` samples, all of one pruner and seed.

    A batch depends on the plan alone, never on what is finished, and is decoded as a whole: so a resumed sweep rounds
    as an uninterrupted one. All arms of a sample come close together, to be compared early.
    """
    by_sample: dict[str, list[Job]] = {}
    for job in jobs:
        by_sample.setdefault(job.sample.name, []).append(job)
    samples = list(by_sample.values())
    for start in range(0, len(samples), size):
        for batch in zip(*samples[start : start + size], strict=True):
            yield list(batch)


def _id(sample: SweepSample, model: Model, arm: Arm, seed: int, recipe: str) -> str:
    digest = hashlib.sha256(f"{recipe}\0{sample.name}\0{sample.key}\0{seed}".encode()).hexdigest()[:12]
    parts = [_safe(sample.name, 80), _safe(model.label, 40), _safe(arm.label, 40), f"s{seed}"[:12], digest]
    return ".".join(parts)


def _safe(text: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)[:length].strip("-") or "x"


def _names(job: Job) -> str:
    return f"model {job.model.label!r} with {job.arm.label!r}"
