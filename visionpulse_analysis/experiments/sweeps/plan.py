"""The jobs of a sweep: every sample with every model, pruner and seed, each with an id of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from visionpulse_analysis.experiments.sweeps.config import Arm, Model, SweepConfig
from visionpulse_analysis.experiments.sweeps.samples import SweepSample, read_samples


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

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_samples`; or two jobs are the same.
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
