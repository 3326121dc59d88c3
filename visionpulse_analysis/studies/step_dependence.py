"""Is visual evidence step-dependent? Masses, overlaps of critical sets, and whether attention meets the object named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.measures import (
    coverage,
    jaccard,
    jaccard_null,
    overlap_by_lag,
    relevance_hit,
    top_set,
)
from visionpulse_analysis.statistics import Interval, cluster_bootstrap
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.testbed.truth import annotate, object_patches
from visionpulse_analysis.traces import Trace

KINDS = ("template", "verdict", "number", "answer", "colour", "shape", "row", "column")


@dataclass
class StepDependence:
    """Results over samples; every interval resamples samples, never steps.

    mass : per kind of token (known for scenes only), image mass of the steps that produce it.
    lag_overlap : Jaccard index of the critical sets of steps t and t + lag, for lag 1, 2, ...
    prefill_overlap, prefill_coverage : by step, Jaccard index with the prefill's critical set, and the share of the
        step's image mass that this set still holds.
    null : Jaccard index expected of random sets of the same size; null_coverage : their expected coverage.
    on_object : per kind of visual token, share of the image mass on the patches of the object that the step names;
        chance : the share of the patches that these are.
    """

    layer: int
    fraction: float
    mass: dict[str, Interval]
    lag_overlap: list[Interval]
    prefill_overlap: list[Interval]
    prefill_coverage: list[Interval]
    null: float
    null_coverage: float
    on_object: dict[str, Interval]
    top_on_object: dict[str, Interval]
    chance: float

    def numbers(self) -> dict[str, Any]:
        """Headline numbers, JSON-ready."""
        return {
            "layer": self.layer,
            "fraction": self.fraction,
            "mass": {kind: i.to_dict() for kind, i in self.mass.items()},
            "consecutive_overlap": self.lag_overlap[0].to_dict(),
            "overlap_null": self.null,
            "prefill_coverage_mean": float(np.mean([i.estimate for i in self.prefill_coverage[1:]])),
            "coverage_null": self.null_coverage,
            "on_object": {kind: i.to_dict() for kind, i in self.on_object.items()},
            "top_on_object": {kind: i.to_dict() for kind, i in self.top_on_object.items()},
            "chance": self.chance,
        }


def step_dependence(
    traces: Sequence[Trace],
    samples: Sequence[Sample],
    layer: int,
    *,
    fraction: float = 0.05,
    max_lag: int = 10,
) -> StepDependence:
    """Measure how the critical patches (top ``fraction`` of a step's attention) change from step to step.

    Parameters
    ----------
    traces, samples : aligned; the samples' scenes give the truth where they have one
    layer : model index of a recorded layer
    """
    rows = [rows_of(trace, layer) for trace in traces]
    sets = [top_set(row, fraction=fraction) for row in rows]
    longest = max(len(row) for row in rows)
    lags = [overlap_by_lag(s, min(max_lag, len(s) - 1)) for s in sets]
    n = rows[0].shape[-1]
    k = int(sets[0][0].sum())
    by_kind, on_object, top_on, chances = _against_truth(traces, samples, rows)
    return StepDependence(
        layer=layer,
        fraction=fraction,
        mass={kind: _mean(by_kind[kind]) for kind in KINDS if len(by_kind[kind][0])},
        lag_overlap=[
            _mean(_gather([lag[d : d + 1] for lag in lags]))
            for d in range(1, max_lag + 1)
            if any(len(lag) > d for lag in lags)
        ],
        prefill_overlap=_by_step([jaccard(s, s[:1]) for s in sets], longest, len(traces)),
        prefill_coverage=_by_step(
            [coverage(row, s[0]) for row, s in zip(rows, sets, strict=True)], longest, len(traces)
        ),
        null=jaccard_null(n, k, k).mean,
        null_coverage=k / n,
        on_object={kind: _mean(on_object[kind]) for kind in KINDS if len(on_object[kind][0])},
        top_on_object={kind: _mean(top_on[kind]) for kind in KINDS if len(top_on[kind][0])},
        chance=float(np.mean(chances)) if chances else float("nan"),
    )


def rows_of(trace: Trace, layer: int) -> np.ndarray:
    """Attention of every step at one layer, head mean: float32 [step, patch]."""
    if layer not in trace.layers:
        raise IndexError(f"layer {layer} was not recorded; recorded layers: {trace.layers}")
    rows = trace.attention.values[:, trace.layers.index(layer)].astype(np.float32)
    return rows if trace.heads is None else rows.mean(axis=1)


Pairs = tuple[list[float], list[int]]


def _against_truth(traces: Sequence[Trace], samples: Sequence[Sample], rows: list[np.ndarray]):
    """Values and sample numbers by kind of token: mass, share of mass on the object, top patch on the object."""
    mass: dict[str, Pairs] = {kind: ([], []) for kind in KINDS}
    share: dict[str, Pairs] = {kind: ([], []) for kind in KINDS}
    top: dict[str, Pairs] = {kind: ([], []) for kind in KINDS}
    chances: list[float] = []
    for number, (trace, sample, row) in enumerate(zip(traces, samples, rows, strict=True)):
        if sample.scene is None:
            continue
        where = object_patches(sample.scene, trace.grid)
        for step, truth in enumerate(annotate(sample.scene, trace.tokens)):
            mass[truth.kind][0].append(float(row[step].sum()))
            mass[truth.kind][1].append(number)
            if truth.object is None:
                continue
            relevance = relevance_hit(row[step], where[truth.object])
            for pairs, value in ((share, relevance.share), (top, relevance.hit)):
                pairs[truth.kind][0].append(float(value))
                pairs[truth.kind][1].append(number)
            chances.append(float(where[truth.object].mean()))
    return mass, share, top, chances


def _mean(pairs: Pairs) -> Interval:
    return cluster_bootstrap(np.array(pairs[0]), np.array(pairs[1]))


def _gather(per_sample: list[np.ndarray]) -> Pairs:
    values = [float(v) for sample in per_sample for v in sample if np.isfinite(v)]
    owners = [number for number, sample in enumerate(per_sample) for v in sample if np.isfinite(v)]
    return values, owners


def _by_step(per_sample: list[np.ndarray], longest: int, n_samples: int) -> list[Interval]:
    """Mean over samples at each step that at least half of them (and two) reach."""
    curves = []
    for step in range(longest):
        pairs = _gather([sample[step : step + 1] for sample in per_sample])
        if len(pairs[0]) < max(2, n_samples / 2):
            break
        curves.append(_mean(pairs))
    return curves
