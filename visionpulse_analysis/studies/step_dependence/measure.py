"""Is visual evidence step-dependent? Masses over steps, and how the critical patches change between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.metrics.attention import coverage, jaccard_null, overlap_by_lag, overlap_with_first, top_set
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, cluster_bootstrap
from visionpulse_analysis.traces import Trace

MOST_POINTS = 150  # of a curve over steps: every point is an interval of its own


@dataclass(frozen=True)
class StepDependence:
    """Results over samples; every interval resamples samples, never steps.

    A step's *critical set* is the ``fraction`` of the patches with the most attention. The attention of step
    ``t`` is that of the query which produces token ``t``; step 0 is the prefill.
    """

    layer: int
    fraction: float
    text_below: float
    n_samples: int
    n_steps: int
    # The steps of all lists by step: as far as half of the samples reach, evenly spaced where these are more than 150
    steps: list[int]
    mass: list[Estimate]  # [step]: image mass, 0..1
    mean_mass: Estimate
    text_share: Estimate  # share of the steps that are text-dominated: image mass below ``text_below``
    # Smallest share of a trace's steps that together hold half of its image mass; 0.5 when all are alike
    half_mass_share: Estimate
    # Image mass of the steps that produce a word, most visual first; words that enough samples use
    words: dict[str, Estimate]
    lag_overlap: list[Estimate]  # [lag - 1]: Jaccard index of the critical sets of steps t and t + lag
    prefill_overlap: list[Estimate]  # [step]: Jaccard index with the prefill's critical set
    # prefill_coverage, own_coverage: [step]: share of a step's image mass on the prefill's critical set, and on its
    # own: the most that any set of that size can hold
    prefill_coverage: list[Estimate]
    own_coverage: list[Estimate]
    # later_overlap, later_coverage, later_own: means of the last three over all steps but the prefill
    later_overlap: Estimate
    later_coverage: Estimate
    later_own: Estimate
    # null_overlap, null_coverage: what random sets of the same size give, exactly
    null_overlap: float
    null_coverage: float

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        given = {name: value for name, value in vars(self).items() if not isinstance(value, list | dict)}
        return as_json(given | {"consecutive_overlap": self.lag_overlap[0]})


def step_dependence(
    traces: Sequence[Trace],
    layer: int,
    *,
    fraction: float = 0.05,
    text_below: float = 0.5,
    max_lag: int = 30,
    n_resamples: int = 1000,
) -> StepDependence:
    """Measure the image mass of every step and how the critical sets change from step to step.

    Raises ValueError: no trace is given, or one has a single step, without a later step to compare; IndexError: the
    layer was not recorded.

    Parameters
    ----------
    traces : one per sample, each with two steps or more
    layer : model index of a recorded layer
    fraction : share of the patches that makes a critical set, in (0, 1]
    text_below : a step with less image mass than this is called text-dominated
    max_lag : largest distance between compared steps
    n_resamples : of every interval
    """
    short = [trace.meta.get("id", number) for number, trace in enumerate(traces) if len(trace) < 2]
    if not len(traces) or short:
        raise ValueError(f"expected traces of two steps or more; got {len(traces)}, too short: {short[:5]}")
    rows = [rows_of(trace, layer) for trace in traces]
    masses = [masses_of(trace, layer) for trace in traces]
    sets = [top_set(row, fraction=fraction) for row in rows]
    size = [(row.shape[-1], int(one[0].sum())) for row, one in zip(rows, sets, strict=True)]
    lags = [overlap_by_lag(one, max_lag)[1:] for one in sets]
    overlap = [overlap_with_first(one) for one in sets]
    covered = [coverage(row, one[0]) for row, one in zip(rows, sets, strict=True)]
    own = [coverage(row, one) for row, one in zip(rows, sets, strict=True)]

    def mean(columns: Iterable[np.ndarray]) -> Estimate:
        return mean_over_samples(columns, n_resamples)

    reached = sorted(len(trace) for trace in traces)
    common = reached[(len(traces) - 1) // 2]
    steps = list(range(0, common, -(-common // MOST_POINTS)))

    def by_step(columns: list[np.ndarray]) -> list[Estimate]:
        return [mean(column[t : t + 1] for column in columns) for t in steps]

    return StepDependence(
        layer=layer,
        fraction=fraction,
        text_below=text_below,
        n_samples=len(traces),
        n_steps=sum(map(len, masses)),
        steps=steps,
        mass=by_step(masses),
        mean_mass=mean(masses),
        text_share=mean((mass < text_below).astype(float) for mass in masses),
        half_mass_share=mean(np.array([_half_mass_share(mass)]) for mass in masses),
        words=_words(traces, masses, n_resamples),
        lag_overlap=[
            mean(lag[d : d + 1] for lag in lags) for d in range(max_lag) if any(np.isfinite(lag[d]) for lag in lags)
        ],
        prefill_overlap=by_step(overlap),
        prefill_coverage=by_step(covered),
        own_coverage=by_step(own),
        later_overlap=mean(one[1:] for one in overlap),
        later_coverage=mean(one[1:] for one in covered),
        later_own=mean(one[1:] for one in own),
        null_overlap=float(np.mean([jaccard_null(n, k, k).mean for n, k in size])),
        null_coverage=float(np.mean([k / n for n, k in size])),
    )


def rows_of(trace: Trace, layer: int) -> np.ndarray:
    """Attention of every step at one layer, head mean: float32 [step, patch].

    Raises IndexError when the layer was not recorded.
    """
    if layer not in trace.layers:
        raise IndexError(f"layer {layer} was not recorded; recorded layers: {trace.layers}")
    rows = trace.attention[:, trace.layers.index(layer)].values.astype(np.float32)
    return rows if trace.heads is None else rows.mean(axis=1)


def masses_of(trace: Trace, layer: int) -> np.ndarray:
    """Image mass of every step at one layer, head mean: float64 [step], before rounding to float16."""
    mass = trace.mass[:, trace.layers.index(layer)].values.astype(np.float64)
    return mass if trace.heads is None else mass.mean(axis=1)


def mean_over_samples(
    columns: Iterable[np.ndarray], n_resamples: int = 1000, unit: str = "sample", confidence: float = 0.95
) -> Estimate:
    """Mean of all values, with an interval that resamples samples; for bool values the score interval of a share.

    ``columns`` holds one array of values per sample, which ``unit`` names; NaN is left out. Raises ValueError where
    nothing else is there.
    """
    given = [np.asarray(column) for column in columns]
    method = "score" if all(column.dtype == bool for column in given) else "studentized"
    listed = [column.astype(np.float64) for column in given]
    values = np.concatenate(listed)
    owners = np.repeat(np.arange(len(listed)), [len(column) for column in listed])
    defined = np.isfinite(values)
    options = {"n_resamples": n_resamples, "unit": unit, "confidence": confidence}
    return cluster_bootstrap(values[defined], owners[defined], method=method, **options)


def share_over_samples(columns: Iterable[np.ndarray], unit: str = "sample") -> Estimate:
    """The same for values that are 0 or 1, with an interval that also exists where all are alike."""
    listed = [np.asarray(column, dtype=np.float64) for column in columns]
    values = np.concatenate(listed)
    owners = np.repeat(np.arange(len(listed)), [len(column) for column in listed])
    defined = np.isfinite(values)
    return cluster_bootstrap(values[defined], owners[defined], unit=unit)


def _half_mass_share(mass: np.ndarray) -> float:
    """Smallest share of the steps that hold half of all mass, the last one in part; NaN without mass."""
    held = np.concatenate([[0.0], np.cumsum(np.sort(mass)[::-1])])
    return float(np.interp(held[-1] / 2, held, np.arange(len(held))) / len(mass)) if held[-1] > 0 else np.nan


def _words(traces: Sequence[Trace], masses: list[np.ndarray], n_resamples: int) -> dict[str, Estimate]:
    """Mass by produced word, over the words that a tenth of the samples (and two) use; the highest first."""
    tokens = [np.array([token.strip() or token for token in trace.tokens]) for trace in traces]
    users: dict[str, int] = {}
    for word in (word for one in tokens for word in set(one.tolist())):
        users[word] = users.get(word, 0) + 1
    known = {
        word: mean_over_samples([mass[one == word] for mass, one in zip(masses, tokens, strict=True)], n_resamples)
        for word, count in users.items()
        if count >= max(2, len(traces) / 10)
    }
    return dict(sorted(known.items(), key=lambda item: -item[1].value))
