"""Decode the same samples in several ways ("arms") and keep what came out, without attention.

Arms share what prefill they can (`trunk`); the tokens are those of :func:`decode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionpulse_analysis import decoding
from visionpulse_analysis._util.files import cache_folder
from visionpulse_analysis._util.ledger import note
from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.cache import (
    CHANGED,
    generators,
    keep,
    part_of_key,
    recall,
    replaced_in_libraries,
    say_once,
    state_of,
)
from visionpulse_analysis.experiments.collect import key_of
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.flops import costs_of
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.baselines import Oracle
from visionpulse_analysis.traces import Trace


class Trunk(decoding.Trunk):
    """One batch of samples after its dense prefill; what their dense answers depend on is found once, and kept."""

    def __init__(self, vlm: VLM, samples: Sequence[Sample], max_new_tokens: int):
        self.vlm, self.max_new_tokens = vlm, max_new_tokens
        self.prompts = [vlm.prompt(one.image, one.question) for one in samples]
        self.hindsight: dict[tuple[Any, ...], torch.Tensor] = {}  # what the dense traces attended to, see _Rows
        self.samples = samples
        self.state = state_of(vlm, _Rows, Trunk)
        super().__init__(vlm, self.records([0] * len(samples)), self.options(None, None))

    def make(self, records: Sequence[Record], options: Options) -> Batch:
        return _Rows(self, records, options)

    def decode(self, pruner: Pruner | None, sample: Sampling | None, seeds: list[int]) -> list[Trace]:
        """Decode all rows from here, under a pruner or dense."""
        records = self.records(seeds)
        self.branch(records, self.options(pruner, sample))
        return [record.trace for record in records if record.trace is not None]

    def first_choice(self, pruner: Pruner, seeds: list[int]) -> list[np.ndarray]:
        """What is left where the pruner first drops anything, by the dense states up to there: per row bool [patch]."""
        [group] = _Rows(self, self.records(seeds), self.options(pruner, None)).groups
        with torch.inference_mode():
            kept = self.batch.layout.patches
            for view in self.views:
                now = group.selection.visible_prefill(view)
                if now is not None and not torch.equal(now, kept):
                    kept = now
                    break
        return self._by_row(kept)

    def relevance(self, tokens: int) -> list[np.ndarray]:
        """See :func:`relevance`: per row float32 [patch]."""
        return self._by_row(
            _Rows(self, self.records([0] * len(self.prompts)), self.options(None, None))._relevance(tokens)
        )

    def _by_row(self, values: torch.Tensor) -> list[np.ndarray]:
        return [row[: len(prompt.grid)] for row, prompt in zip(values.cpu().numpy(), self.prompts, strict=True)]

    def records(self, seeds: list[int]) -> list[Record]:
        pairs = zip(self.prompts, seeds, strict=True)
        return [Record(self.vlm, prompt, seed, {}, layers=[]) for prompt, seed in pairs]

    def options(self, pruner: Pruner | None, sample: Sampling | None) -> Options:
        return Options([], None, pruner, "masked", sample, self.max_new_tokens)


class _Rows(Batch):
    """The batch of a branch: what the dense answers look at and depend on is found once for all branches.

    Dense answers start from the trunk's prefill, too. What they depend on is the costliest to find and kept on disk.
    """

    def __init__(self, trunk: Trunk, records: Sequence[Record], options: Options):
        self.trunk = trunk
        super().__init__(trunk.vlm, records, options)

    def _dense(self, options: Options) -> tuple[Batch, torch.Tensor]:
        batch = Batch(self.vlm, self.records, options)
        self.trunk.lend(batch)
        return batch, self.trunk.logits.clone()

    def _hindsight(self, layer: int) -> torch.Tensor:
        key = layer, self.options.sample, *self.layout.seeds
        if key not in self.trunk.hindsight:
            self.trunk.hindsight[key] = super()._hindsight(layer)
        return self.trunk.hindsight[key]

    def _relevance(self, tokens: int) -> torch.Tensor:
        vlm, options = self.vlm, {"relevance": tokens, "max_new_tokens": self.trunk.max_new_tokens}
        key = key_of(vlm, self.trunk.samples, options, self.trunk.state)
        path = None if key is None else cache_folder() / f"relevance-{key}.json"
        found = None if path is None else recall(path)
        if found is None:
            before = state_of(vlm)  # in the middle of a run, whose attention is routed
            found = super()._relevance(tokens).cpu().tolist()
            if path is not None and state_of(vlm) == before:
                keep(path, found)
        return torch.tensor(found, dtype=torch.float32, device=self.vlm.model.device)


@dataclass(frozen=True)
class Outcome:
    """What one decode gave."""

    tokens: list[str]  # the generated tokens, the end token included
    finished: bool  # False when the limit of tokens cut the trace off
    retention: float  # mean share of the patches visible from the anchor on, over the steps after prefill; 1 when dense
    overlap: float  # mean Jaccard index of the kept sets of consecutive steps; 1 when dense
    # See :func:`kept_by_layer`; empty when dense, and without a step after prefill
    kept_by_layer: tuple[float, ...] = ()
    # flops, kv_bytes_read, peak_kv_bytes: of the whole trace, prefill included, by `costs`; NaN where not counted
    flops: float = float("nan")
    kv_bytes_read: float = float("nan")
    peak_kv_bytes: float = float("nan")

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept_by_layer", tuple(self.kept_by_layer))  # JSON gives a list


def decode_arms(
    vlm: VLM,
    samples: Sequence[Sample],
    arms: Mapping[str, Pruner | None],
    *,
    seeds: Sequence[int] = (0,),
    sample: Sampling | None = None,
    max_new_tokens: int = 160,
    batch_size: int = 32,
    progress: bool | None = None,
) -> dict[str, list[list[Outcome]]]:
    """Decode every sample once per arm and seed, or read the outcomes of an earlier run with the same inputs.

    Raises ValueError: without samples, arms or seeds.

    Parameters
    ----------
    arms : mapping of name to pruner, or None for dense
    seeds : sample ``i`` is decoded with ``seed * 1_000_003 + i`` in every arm, as in :func:`collect`: arms share draws
    sample : Sample of `sampling`, optional
        Greedy without one; then one seed says all.
    progress : As in `decode`

    Returns
    -------
    dict
        arm -> [seed][sample] -> Outcome
    """
    if not samples or not arms or not seeds:
        raise ValueError(f"expected samples, arms and seeds, got {len(samples)}, {len(arms)} and {len(seeds)} of them")
    note("batch_size", "decoded together", batch_size)
    ran = (outcome_of, Trunk, sample)
    state = state_of(vlm, *ran)
    base = key_of(vlm, samples, {"max_new_tokens": max_new_tokens}, state)
    files = _files(base, arms, seeds)
    found = {job: None if path is None else recall(path) for job, path in files.items()}
    # Equal pruners under several names, as at one budget and at one anchor, are decoded once.
    first: dict[Path | None, tuple[str, int]] = {}
    twin = {job: job if path is None else first.setdefault(path, job) for job, path in files.items()}
    missing = [job for job, outcomes in found.items() if outcomes is None and twin[job] == job]
    fresh: dict[tuple[str, int], list[Any]] = {job: [] for job in missing}
    moved, at = set(), generators()  # jobs that draw from what the process shares
    with bar(len(missing) * len(samples), "decode", "trace", progress):
        for start in range(0, len(samples) if missing else 0, batch_size):
            part = samples[start : start + batch_size]
            trunk = Trunk(vlm, part, max_new_tokens)
            for arm, seed in missing:
                row_seeds = [seed * 1_000_003 + start + i for i in range(len(part))]
                fresh[arm, seed] += [asdict(outcome_of(trace)) for trace in trunk.decode(arms[arm], sample, row_seeds)]
                if at != (at := generators()):
                    moved.add((arm, seed))
    same = bool(missing) and base is not None and state_of(vlm, *ran) == state
    now = _files(base, arms, seeds) if same else {}
    for (arm, seed), outcomes in fresh.items():
        path = files[arm, seed]
        if path is not None and same and (arm, seed) not in moved and now[arm, seed] == path:
            keep(path, outcomes)
        elif path is not None:
            say_once(CHANGED)
    found |= fresh
    found = {job: found[twin[job]] for job in found}
    return {arm: [[Outcome(**one) for one in found[arm, seed] or ()] for seed in seeds] for arm in arms}


def first_choices(
    vlm: VLM,
    samples: Sequence[Sample],
    pruners: Mapping[str, Pruner],
    *,
    tokens: int = Oracle.tokens,
    max_new_tokens: int = 160,
    batch_size: int = 32,
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """What pruners leave of a prefill where they first drop anything, and what the dense answers depend on.

    Returns
    -------
    kept : dict
        Name -> bool [patch] per sample.
    relevance : list
        float32 [patch] per sample, over the first ``tokens`` of its dense answer (see :func:`relevance`).
    """
    kept: dict[str, list[np.ndarray]] = {name: [] for name in pruners}
    found: list[np.ndarray] = []
    with bar(len(samples) * (len(pruners) + 1), "choose", "choice"):
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            trunk = Trunk(vlm, part, max_new_tokens)
            for name, pruner in pruners.items():
                kept[name] += trunk.first_choice(pruner, list(range(start, start + len(part))))
                advance("choice", len(part))
            found += trunk.relevance(tokens)
            advance("choice", len(part))
    return kept, found


def outcome_of(trace: Trace) -> Outcome:
    """What one decode gave; without costs where the trace does not say what these depend on."""
    kept = np.ones((0, 0), bool) if trace.kept is None else trace.kept.values[1:]
    costs = costs_of(trace) if "costs" in trace.meta else None
    spent = () if costs is None else (float(costs.flops.sum()), float(costs.kv_bytes_read.sum()), costs.peak_kv_bytes)
    if len(kept) == 0:
        return Outcome(trace.tokens, trace.meta["finished"], 1.0, 1.0, (), *spent)
    both, either = (kept[1:] & kept[:-1]).sum(1), (kept[1:] | kept[:-1]).sum(1)
    same = np.where(either == 0, 1.0, both / np.maximum(either, 1))  # two empty sets are the same set
    overlap = float(same.mean()) if len(kept) > 1 else 1.0
    layers = tuple(kept_by_layer(trace).tolist())
    return Outcome(trace.tokens, trace.meta["finished"], float(kept.mean()), overlap, layers, *spent)


def kept_by_layer(trace: Trace) -> np.ndarray:
    """Share of the patches that each layer keeps, mean over the steps after prefill: float64 [model_layer].

    A patch is kept in a layer where it is visible, unless prefill froze it there (ShortV), so that the layer reads it
    and no longer works on it. Empty for a dense trace, and without a step after prefill.
    """
    if trace.k_per_layer is None or len(trace) < 2:
        return np.ones(0)
    shares = trace.k_per_layer.values[1:].mean(axis=0) / len(trace.grid)
    shares[list(trace.meta.get("costs", {}).get("frozen_layers", ()))] = 0.0
    return shares


def _files(
    base: str | None, arms: Mapping[str, Pruner | None], seeds: Sequence[int]
) -> dict[tuple[str, int], Path | None]:
    """Where the outcomes of each arm and seed are kept; None where it cannot be told what they depend on.

    An arm's place does not depend on the other arms: what somebody replaced in a library counts for those that use it.
    """
    files: dict[tuple[str, int], Path | None] = {}
    for arm, pruner in arms.items():
        replaced = None if base is None else replaced_in_libraries(pruner)
        for seed in seeds:
            key = None if replaced is None else part_of_key([base, seed, pruner, replaced])
            files[arm, seed] = None if key is None else cache_folder() / f"outcomes-{key[:24]}.json"
    return files
