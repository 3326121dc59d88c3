"""Correlation over clustered steps; importable from `visionpulse_analysis.metrics.statistics` too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from visionpulse_analysis.metrics.bootstrap import Method, resampled_interval
from visionpulse_analysis.metrics.clusters import (
    Kind,
    aligned,
    centre_within,
    cluster_codes,
    moments,
    one_choice,
    pearson_from_sums,
    rank_within,
)
from visionpulse_analysis.metrics.estimate import Estimate


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    clusters: ArrayLike,
    *,
    kind: Kind = "pooled",
    method: Literal["pearson", "spearman"] = "pearson",
    interval: Method = "expanded",
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    unit: str = "sample",
) -> Estimate:
    """Correlate two per-step quantities over samples, with an interval from resampling samples.

    Parameters
    ----------
    x, y : array [value]
    clusters : labels [value]
        The sample of each value.
    kind : "pooled" or "within"
        "pooled": over all values, as published; mixes differences between samples with changes over steps.
        "within": pooled after subtracting each sample's own mean (the fixed-effects correlation), so only
        changes inside a sample count; samples with more variation weigh more.
    method : "pearson" or "spearman"
        Spearman ranks all values again in every resample (pooled), or inside each sample, divided by its
        length (within).
    interval : "expanded", "percentile" or "bca"
        As in `cluster_bootstrap`. Where samples differ as much as steps, 95 % intervals of pooled r hold the truth in
        91 % of cases with 12 samples, 92 % with 20 and 93 % with 40 (within: 94, 93 and 95 %;
        ``python tests/interval_coverage.py``).
    n_resamples : int, >= 2
        Draws of as many clusters as there are, with replacement.
    confidence : float in (0, 1)
        Nominal coverage of the interval.
    seed : int, >= 0
        Of the draws; the same seed gives the same interval.
    unit : str
        What one cluster is, in the singular.

    Returns
    -------
    Estimate, -1 to 1; estimate NaN if x or y is constant (within: constant in every sample).

    Raises
    ------
    ValueError
        As `cluster_bootstrap`.
    """
    one_choice(kind, ("pooled", "within"), "kind")
    one_choice(method, ("pearson", "spearman"), "method")
    first, second = aligned("x and y", x, y)
    codes = cluster_codes(clusters, len(first))
    if method == "spearman" and kind == "within":
        first, second = rank_within(first, codes), rank_within(second, codes)
    groups = codes if kind == "within" else np.zeros_like(codes)
    if method == "spearman" and kind == "pooled":
        evaluate = _resampled_spearman(first, second, codes)
    else:
        evaluate = _resampled_pearson(centre_within(first, groups), centre_within(second, groups), codes)
    result = resampled_interval(evaluate, codes, n_resamples, confidence, seed, interval, unit)
    return replace(result, method=f"{result.method}, {kind} {method}")


def _resampled_pearson(x: np.ndarray, y: np.ndarray, codes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return draws [resample, cluster] -> Pearson's r of centred x and y."""
    sums = moments(codes, x, y)
    return lambda times: pearson_from_sums(times @ sums)


def _resampled_spearman(x: np.ndarray, y: np.ndarray, codes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return draws [resample, cluster] -> Spearman's r, by mid-ranks of the repeated values (no sorting)."""
    places = [np.unique(values, return_inverse=True)[1] for values in (x, y)]

    def evaluate(times: np.ndarray) -> np.ndarray:
        results = []
        for weights in times[:, codes].astype(float):
            ranks = []
            for place in places:
                repeats = np.bincount(place, weights=weights)
                ranks.append((np.cumsum(repeats) - repeats / 2)[place] - weights.sum() / 2)
            a, b = ranks  # centred: the weighted mean of mid-ranks is half the number of values
            wa, wb = weights * a, weights * b
            sums = [weights.sum(), wa.sum(), wb.sum(), wa @ a, wb @ b, wa @ b]
            results.append(pearson_from_sums(np.array(sums)))
        return np.array(results)

    return evaluate
