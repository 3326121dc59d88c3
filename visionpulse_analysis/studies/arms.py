"""Decode the same samples in several ways ("arms") and keep what came out, without attention.

All arms whose pruner acts from the first decode step on share one dense prefill, which their pruners watch, and start
from the same cache; the others make their own. Prefill is more than half of the cost of short traces; the tokens are
those of :func:`decode`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from visionpulse_analysis.attention import route
from visionpulse_analysis.collecting import Record
from visionpulse_analysis.costs import costs_of
from visionpulse_analysis.decoding import Batch, Options, Run
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.view import Layout, View
from visionpulse_analysis.sampling import Sample as Sampling
from visionpulse_analysis.studies.collect import cache_folder, key_of
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.traces import Trace

VERSION = 2  # of the kept files


@dataclass(frozen=True)
class Outcome:
    """What one decode gave.

    tokens : the generated tokens, the end token included.
    finished : False when the limit of tokens cut the trace off.
    retention : mean share of the patches visible from the anchor on, over the steps after prefill; 1 when dense.
    overlap : mean Jaccard index of the kept sets of consecutive steps; 1 when dense.
    flops, kv_bytes_read, peak_kv_bytes : of the whole trace, prefill included, by `costs`; NaN where not counted.
    """

    tokens: list[str]
    finished: bool
    retention: float
    overlap: float
    flops: float = float("nan")
    kv_bytes_read: float = float("nan")
    peak_kv_bytes: float = float("nan")


def decode_arms(
    vlm: VLM,
    samples: Sequence[Sample],
    arms: Mapping[str, Pruner | None],
    *,
    seeds: Sequence[int] = (0,),
    sample: Sampling | None = None,
    max_new_tokens: int = 160,
    batch_size: int = 32,
) -> dict[str, list[list[Outcome]]]:
    """Decode every sample once per arm and seed, or read the outcomes of an earlier run with the same inputs.

    Parameters
    ----------
    arms : mapping of name to pruner, or None for dense
    seeds : sequence of int
        Sample ``i`` is decoded with ``seed * 1_000_003 + i`` in every arm, as in :func:`collect`: arms share draws.
    sample : Sample of `sampling`, optional
        Greedy without one; then one seed says all.

    Returns
    -------
    dict
        arm -> [seed][sample] -> Outcome

    Raises
    ------
    ValueError
        Without samples, arms or seeds.
    """
    if not samples or not arms or not seeds:
        raise ValueError(f"expected samples, arms and seeds, got {len(samples)}, {len(arms)} and {len(seeds)} of them")
    base = key_of(vlm, samples, {"outcomes": VERSION, "max_new_tokens": max_new_tokens})
    files = {(arm, seed): _file(base, pruner, seed, sample) for arm, pruner in arms.items() for seed in seeds}
    missing = [job for job, path in files.items() if not path.exists()]
    fresh: dict[tuple[str, int], list[Outcome]] = {job: [] for job in missing}
    for start in range(0, len(samples) if missing else 0, batch_size):
        part = samples[start : start + batch_size]
        trunk = _Trunk(vlm, part, max_new_tokens)
        for arm, seed in missing:
            row_seeds = [seed * 1_000_003 + start + i for i in range(len(part))]
            fresh[arm, seed] += trunk.branch(arms[arm], sample, row_seeds)
    for job, outcomes in fresh.items():
        _write(files[job], outcomes)
    return {arm: [_read(files[arm, seed]) for seed in seeds] for arm in arms}


class _Trunk:
    """One batch after its dense prefill."""

    def __init__(self, vlm: VLM, samples: Sequence[Sample], max_new_tokens: int):
        self.vlm, self.max_new_tokens = vlm, max_new_tokens
        self.prompts = [vlm.prompt(one.image, one.question) for one in samples]
        self.views: list[View] = []
        self.batch = Batch(vlm, self.records([0] * len(samples)), self.options(_Witness(self.views), None))
        with torch.inference_mode(), route(vlm.model, self.batch.attend):
            self.logits = self.batch.prefill()

    def branch(self, pruner: Pruner | None, sample: Sampling | None, seeds: list[int]) -> list[Outcome]:
        """Decode all rows from here."""
        records = self.records(seeds)
        _Branch(self, records, self.options(pruner, sample)).finish()
        return [_outcome(record.trace) for record in records if record.trace is not None]

    def records(self, seeds: list[int]) -> list[Record]:
        pairs = zip(self.prompts, seeds, strict=True)
        return [Record(self.vlm, prompt, seed, {}, layers=[]) for prompt, seed in pairs]

    def options(self, pruner: Pruner | None, sample: Sampling | None) -> Options:
        return Options([], None, pruner, "masked", sample, self.max_new_tokens)


@dataclass(frozen=True)
class _Witness(Pruner):
    """Keeps what a selection sees of a dense prefill, layer by layer."""

    views: list[View]

    def start(self, layout: Layout) -> Selection:
        return _Witnessing(layout, self.views)


class _Witnessing(Selection):
    def __init__(self, layout: Layout, views: list[View]):
        super().__init__(layout)
        self.views = views

    def observe_prefill(self, view: View) -> None:
        self.views.append(view)


class _Branch(Run):
    """A run that goes on from a trunk: its selection is shown the prefill, and it gets a copy of the cache."""

    def __init__(self, trunk: _Trunk, records: list[Record], options: Options):
        super().__init__(trunk.vlm, records, options, len(records))
        self.trunk = trunk

    def prefill(self, records: Sequence[Record]) -> tuple[Batch, torch.Tensor]:
        batch, trunk = Batch(self.vlm, records, self.options), self.trunk
        for group in batch.groups:
            if not group.selection.dense_prefill:
                return super().prefill(records)
            for view in trunk.views:
                group.selection.observe_prefill(view)
        batch.cache, batch.position = copy.deepcopy(trunk.batch.cache), trunk.batch.position.clone()
        return batch, trunk.logits.clone()


def _outcome(trace: Trace) -> Outcome:
    kept = np.ones((0, 0), bool) if trace.kept is None else trace.kept.values[1:]
    costs = costs_of(trace)
    spent = (float(costs.flops.sum()), float(costs.kv_bytes_read.sum()), costs.peak_kv_bytes)
    if len(kept) == 0:
        return Outcome(trace.tokens, trace.meta["finished"], 1.0, 1.0, *spent)
    both, either = (kept[1:] & kept[:-1]).sum(1), (kept[1:] | kept[:-1]).sum(1)
    same = np.where(either == 0, 1.0, both / np.maximum(either, 1))  # two empty sets are the same set
    overlap = float(same.mean()) if len(kept) > 1 else 1.0
    return Outcome(trace.tokens, trace.meta["finished"], float(kept.mean()), overlap, *spent)


def _file(base: str, pruner: Pruner | None, seed: int, sample: Sampling | None) -> Path:
    options = [None if given is None else given.to_dict() for given in (pruner, sample)]
    digest = hashlib.sha256(json.dumps([base, seed, options]).encode())
    return cache_folder() / f"outcomes-{digest.hexdigest()[:24]}.json"


def _write(path: Path, outcomes: list[Outcome]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    draft.replace(path)


def _read(path: Path) -> list[Outcome]:
    return [Outcome(**fields) for fields in json.loads(path.read_text())]
