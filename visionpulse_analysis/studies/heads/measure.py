"""Every head beside what the steps depend on: chosen on one half of the samples, judged on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis._util import progress
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps, keep_exactly
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.nulls import permutation_test
from visionpulse_analysis.metrics.patch_sets import top_set
from visionpulse_analysis.metrics.statistics import Claim, Estimate, judge, paired_difference
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.layers.anchors import relevant_patches
from visionpulse_analysis.studies.step_dependence.measure import mean_over_samples
from visionpulse_analysis.traces import Trace

RECORD = ("head_entropy", "value_norm_attention")  # what the traces hold besides, see `vpa.list_quantities`
CRITERIA = ("agreement", "own step", "mass", "low entropy", "agreement by norm")  # by which a head may be chosen
ARMS = ("head", "layer's mean", "random", "none")

Head = tuple[int, int]  # layer, head: model indices
Columns = list[np.ndarray]  # one array [step] for each sample


@dataclass(frozen=True)
class Heads:
    """How each head looks at the image, and how those chosen on one half do on the other; intervals resample samples.

    A step *reads* if hiding all patches in every layer moves its next-token distribution by more than ``level`` nats.
    Its *relevant set* are the squares of 2 x 2 patches whose removal, one at a time, moves it most, as many as hold the
    ``fraction`` of the patches; a head's *top set* holds as many patches, those it attends to most.
    """

    # layers, heads: model indices of what was recorded
    layers: list[int]
    heads: list[int]
    fraction: float
    level: float
    # mass, when: over all samples: the head's image mass at the steps that read, and that minus its mass at the others
    mass: dict[Head, Estimate]
    when: dict[Head, Estimate]
    entropy: dict[Head, Estimate]  # nats, over the patches, at the steps that read
    # agreement, other, by_norm: on the half that chooses: share of the relevant set inside the head's top set; inside
    # its top sets at the other reading steps of the same trace, which have the same habits and another step; and inside
    # a top set ranked by what each patch adds (value-norm-weighted attention) rather than by its weight
    agreement: dict[Head, Estimate]
    other: dict[Head, Estimate]
    by_norm: dict[Head, Estimate]
    # There, ``agreement - other``: whether a head follows what its step depends on. Holm, all heads together.
    found: dict[Head, Claim]
    chosen: list[Head]  # those with the largest ``agreement - other`` there, whether or not that is shown
    # On the other half: share of the reading steps that stay within ``level`` nats when, from the head's layer on and
    # in that step alone, only some patches are visible: the ``head``'s top set, that of the ``layer's mean`` over
    # heads, a ``random`` set of that size, or ``none``
    pruned: dict[Head, dict[str, Estimate]]
    # There, for each head chosen: ``agreement - other`` ("own step"), and within ``level`` by the head minus by
    # "random" and minus by the "layer's mean". Holm, all together.
    judged: dict[tuple[Head, str], Claim]
    # By each of `CRITERIA`, the head that is best on the half that chooses, and its agreement on the other half
    best: dict[str, tuple[Head, Estimate]]
    reading: Estimate  # share of the steps after prefill that read
    chance: float  # agreement of a random set
    # n_choosing, n_judging: samples with a step that reads, in each half
    n_choosing: int
    n_judging: int

    def numbers(self) -> dict[str, Any]:
        """Everything, JSON-ready; a head is named "layer.head"."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {named(key): plain(one) for key, one in value.items()}
            if isinstance(value, tuple | list):
                return [plain(one) for one in value]
            return as_json(value)

        def named(key: Any) -> str:
            if isinstance(key, str):
                return key
            return ".".join(map(str, key)) if isinstance(key[1], int) else f"{named(key[0])}, {key[1]}"

        given = {**vars(self), "chosen": [named(head) for head in self.chosen]}
        given["best"] = {by: {"head": named(head), "agreement": one} for by, (head, one) in self.best.items()}
        return plain(given)


@dataclass(frozen=True)
class _Looked:
    """One trace: float [step, head] of all heads in a row, and what its reading steps depend on."""

    # mass, reads: of all steps after prefill; the others, of the reading steps examined
    mass: np.ndarray
    reads: np.ndarray
    steps: np.ndarray
    entropy: np.ndarray
    agreement: np.ndarray
    other: np.ndarray
    by_norm: np.ndarray
    top: np.ndarray  # bool [step, head, patch]
    mean_top: np.ndarray  # bool [step, layer, patch], of the layer's mean over heads


def measure_heads(
    vlm: VLM,
    traces: Sequence[Trace],
    *,
    fraction: float = 0.05,
    level: float = 0.05,
    most_steps: int = 6,
    n_chosen: int = 3,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Heads:
    """Compare every head with what single steps depend on; choose heads on half of the samples, judge on the other.

    Raises ValueError: a trace holds no single heads or lacks a quantity, fewer than two samples have a step that reads,
    or an option is out of range; or as :class:`SingleSteps`.

    Parameters
    ----------
    traces : dense, with all heads one by one and the quantities `RECORD`
    fraction : of the patches that a top set and a relevant set hold, in (0, 1]
    level : KL in nats that counts as unchanged, above 0
    most_steps : examined per trace, evenly spaced among the steps that read
    n_chosen : heads that are judged
    """
    for trace in traces:
        missing = [name for name in RECORD if name not in trace.quantities]
        if trace.heads is None or missing:
            raise ValueError(
                f"trace {trace.meta.get('id')!r} holds heads {trace.heads} (None: their mean) and lacks {missing}: "
                f"decode with heads='all', record={list(RECORD)}"
            )
    layers, heads = (traces[0].layers, traces[0].heads or []) if traces else ([], [])
    every = [(layer, head) for layer in layers for head in heads]
    if not 1 <= n_chosen <= len(every) or most_steps < 1 or not 0 < fraction <= 1 or level <= 0:
        raise ValueError(
            f"n_chosen {n_chosen} of {len(every)} heads, most_steps {most_steps}, fraction {fraction}, level {level}: "
            "expected at least 1 of each, a fraction in (0, 1], a level above 0"
        )
    looked = progress.over(
        lambda trace: _look(SingleSteps.of(vlm, trace), trace, fraction, level, most_steps), traces, "heads", "trace"
    )
    # Which half chooses is drawn over those that read at all, so that both halves have as many.
    reading = [number for number, one in enumerate(looked) if len(one.steps)]
    if len(reading) < 2:
        raise ValueError(
            f"{len(reading)} of {len(traces)} traces have a step that reads the image (hiding it moves the next-token "
            f"distribution by more than {level} nats); lower the level, or take more samples or another model"
        )
    order = np.random.default_rng(seed).permutation(reading)
    choosing, judging = (sorted(half.tolist()) for half in np.array_split(order, 2))

    def over(half: Sequence[int], name: str, head: int) -> Columns:
        return [getattr(looked[number], name)[:, head] for number in half]

    def estimates(half: Sequence[int], name: str) -> dict[Head, Estimate]:
        return {key: mean_over_samples(over(half, name, n), n_resamples) for n, key in enumerate(every)}

    lifts = {key: _lift(over(choosing, "other", n), over(choosing, "agreement", n), n_resamples, seed)
             for n, key in enumerate(every)}  # fmt: skip
    agreement, other, by_norm = (estimates(choosing, name) for name in ("agreement", "other", "by_norm"))
    entropy = estimates(reading, "entropy")
    mass = {key: mean_over_samples([looked[i].mass[looked[i].reads, n] for i in reading], n_resamples)
            for n, key in enumerate(every)}  # fmt: skip
    chosen = sorted(every, key=lambda key: -np.nan_to_num(lifts[key][0].value, nan=-1))[:n_chosen]

    # Only the half that chooses says which head is best by a criterion; only the other says how good it is.
    def on_choosing(name: str, head: int) -> float:
        return float(np.nanmean(np.concatenate(over(choosing, name, head))))

    scores = {
        "agreement": [agreement[key].value for key in every],
        "own step": [lifts[key][0].value for key in every],
        "mass": [
            np.concatenate([looked[i].mass[looked[i].reads, n] for i in choosing]).mean() for n in range(len(every))
        ],
        "low entropy": [-on_choosing("entropy", n) for n in range(len(every))],
        "agreement by norm": [by_norm[key].value for key in every],
    }
    best = {}
    for criterion, values in scores.items():
        number = int(np.nanargmax(values))
        column = "by_norm" if criterion == "agreement by norm" else "agreement"
        best[criterion] = every[number], mean_over_samples(over(judging, column, number), n_resamples)

    rng = np.random.default_rng([seed, 1])
    pruned, tests = {}, {}
    for key in chosen:
        number = every.index(key)
        within = _prune(vlm, [traces[i] for i in judging], [looked[i] for i in judging], number, layers, level, rng)
        pruned[key] = {arm: mean_over_samples(columns, n_resamples) for arm, columns in within.items()}
        tests[key, "own step"] = _lift(
            over(judging, "other", number), over(judging, "agreement", number), n_resamples, seed
        )
        for arm in ("random", "layer's mean"):
            tests[key, arm] = _lift(within[arm], within["head"], n_resamples, seed)
    sizes = [one.top[0, 0].mean() for one in looked if len(one.steps)]
    return Heads(
        layers=layers,
        heads=heads,
        fraction=fraction,
        level=level,
        mass=mass,
        when={key: _lift([looked[i].mass[~looked[i].reads, n] for i in reading],
                         [looked[i].mass[looked[i].reads, n] for i in reading], n_resamples, seed, paired=False)[0]
              for n, key in enumerate(every)},
        entropy=entropy,
        agreement=agreement,
        other=other,
        by_norm=by_norm,
        found=judge(lifts, f"{len(every)} heads: agreement with the step's own relevant set minus with other steps'"),
        chosen=chosen,
        pruned=pruned,
        judged=judge(tests, f"{len(tests)} differences of {len(chosen)} heads chosen on other samples"),
        best=best,
        reading=mean_over_samples([one.reads for one in looked], n_resamples),
        chance=float(np.mean(sizes)),
        n_choosing=len(choosing),
        n_judging=len(judging),
    )  # fmt: skip


def _look(replay: SingleSteps, trace: Trace, fraction: float, level: float, most_steps: int) -> _Looked:
    """Measure the heads of one trace."""
    nothing = np.zeros((len(replay.steps), replay.n_patches), dtype=bool)
    reads = replay.run(replay.steps, 0, keep_exactly(nothing)).kl > level
    steps = replay.steps[reads]
    if len(steps) > most_steps:
        steps = steps[np.linspace(0, len(steps) - 1, most_steps).round().astype(int)]
    n = len(trace.layers) * len(trace.heads or ())
    rows = {name: trace.data[name].values[steps].astype(np.float32) for name in ("attention", "value_norm_attention")}
    top, norm_top = (top_set(row.reshape(len(steps), n, replay.n_patches), fraction=fraction) for row in rows.values())
    relevant = np.zeros((len(steps), replay.n_patches), dtype=bool)
    if len(steps):
        relevant = relevant_patches(replay, trace.grid, steps, fraction)

    def held(sets: np.ndarray) -> np.ndarray:
        """Share of each step's relevant set inside some sets [step, head, patch]: [step, head]."""
        return (relevant[:, None] & sets).sum(axis=2) / relevant.sum(axis=1)[:, None]

    # The same head at the other steps examined: what it would hold if it looked at its usual places.
    crossed = np.einsum("sp,thp->sth", relevant / np.maximum(1, relevant.sum(axis=1, keepdims=True)), top)
    away = (crossed.sum(axis=1) - np.einsum("ssh->sh", crossed)) / (len(steps) - 1 if len(steps) > 1 else np.nan)
    return _Looked(
        mass=trace.mass.values[1:].reshape(len(trace) - 1, n).astype(float),
        reads=reads,
        steps=steps,
        entropy=trace.data["head_entropy"].values[steps].reshape(len(steps), n).astype(float),
        agreement=held(top),
        other=away,
        by_norm=held(norm_top),
        top=top,
        mean_top=top_set(rows["attention"].mean(axis=2), fraction=fraction),
    )


def _lift(before: Columns, after: Columns, n_resamples: int, seed: int, paired: bool = True) -> tuple[Estimate, float]:
    """Mean of ``after - before`` with its interval, and the p of none: by step, or by the means of each sample.

    Values that are all 0 or 1 are compared exactly; what is NaN on either side is left out.
    """
    if not paired:
        both = [(a.mean(), b.mean()) for a, b in zip(before, after, strict=True) if len(a) and len(b)]
        before, after = ([np.array([pair[side]]) for pair in both] for side in (0, 1))
    a, b = (np.concatenate(columns).astype(float) for columns in (before, after))
    owner = np.repeat(np.arange(len(before)), [len(column) for column in before])
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return Estimate.missing("no sample has two steps that read the image"), np.nan
    a, b, owner = a[known], b[known], owner[known]
    method = "studentized" if before[0].dtype != bool else "auto"
    difference = paired_difference(a, b, owner, n_resamples=n_resamples, seed=seed, method=method)
    return difference, permutation_test(a, b, owner, seed=seed).p


def _prune(
    vlm: VLM, traces: Sequence[Trace], looked: Sequence[_Looked], number: int, layers: list[int], level: float,
    rng: np.random.Generator,
) -> dict[str, Columns]:  # fmt: skip
    """Whether each reading step stays within ``level`` with some patches visible: by arm, bool [step] per sample."""
    n_heads = looked[0].top.shape[1] // len(layers)
    place = number // n_heads
    within: dict[str, Columns] = {arm: [] for arm in ARMS}
    for trace, one in zip(traces, looked, strict=True):
        replay = SingleSteps.of(vlm, trace)
        top = one.top[:, number]
        drawn = np.argsort(rng.random(top.shape), axis=1) < top.sum(axis=1, keepdims=True)
        for arm, kept in zip(ARMS, (top, one.mean_top[:, place], drawn, np.zeros_like(top)), strict=True):
            within[arm].append(replay.run(one.steps, layers[place], keep_exactly(kept)).kl <= level)
    return within


def rows_of(study: Heads) -> Iterator[tuple[Head, dict[str, Estimate]]]:
    """Every head with what was measured of it, those that follow their step most first."""
    for head in sorted(study.found, key=lambda head: -np.nan_to_num(study.found[head].estimate.value, nan=-1)):
        measured = {
            name: getattr(study, name)[head] for name in ("mass", "when", "entropy", "agreement", "other", "by_norm")
        }
        yield head, measured
