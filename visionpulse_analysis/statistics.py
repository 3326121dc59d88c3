"""Estimates with honest intervals: samples are resampled, never steps.

Steps of one sample resemble each other, so an interval that resamples steps is far too narrow (design notes,
section 4.2). A cluster is one sample. Correlations live in `correlations`, tests against a null in `nulls`;
both are importable from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from visionpulse_analysis._bootstrap import Interval, Method, bootstrap_interval, check_confidence
from visionpulse_analysis._clusters import aligned, cluster_codes, cluster_sums
from visionpulse_analysis.correlations import correlation
from visionpulse_analysis.nulls import (
    McNemar,
    PermutationTest,
    ShapeNull,
    mcnemar,
    permutation_test,
    shape_permutation_null,
)

__all__ = [
    "Interval",
    "McNemar",
    "Method",
    "PermutationTest",
    "ShapeNull",
    "cluster_bootstrap",
    "correlation",
    "mcnemar",
    "paired_difference",
    "permutation_test",
    "proportion_interval",
    "shape_permutation_null",
]


def cluster_bootstrap(
    values: ArrayLike | tuple[ArrayLike, ...],
    clusters: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    method: Method = "expanded",
    unit: str = "sample",
) -> Interval:
    """Estimate a statistic over all values, with an interval from resampling whole clusters.

    Parameters
    ----------
    values : array [value], or a tuple of aligned arrays [value] passed to `statistic` one by one
    clusters : labels [value]
        The sample each value belongs to.
    statistic : callable, values -> float
        Must not depend on the order of the values. The mean (default) is vectorised.
    n_resamples : int, >= 2
        Draws of as many clusters as there are, with replacement.
    confidence : float in (0, 1)
        Nominal coverage of the interval.
    seed : int, >= 0
        Of the draws; the same seed gives the same interval.
    method : "expanded", "percentile" or "bca"
        Percentile intervals are too narrow with few clusters (20 clusters: 92 % instead of 95 %). "expanded"
        widens the percentile's levels by the t quantile and sqrt(n / (n - 1)) (Hesterberg 2015, The American
        Statistician 69:371). Strong skew still costs (20 clusters with exponential means: 92 %, 40: 94 %).
        "bca" corrects bias and skewness (Efron 1987) but not narrowness.
    unit : str
        What one cluster is, in the singular; `str()` of the interval names it.

    Returns
    -------
    Interval; NaN bounds by the rule given there.

    Raises
    ------
    ValueError
        If values are empty, NaN, infinite or of unequal length, or an option is out of range. Drop undefined
        values first and say how many.

    Examples
    --------
    >>> interval = cluster_bootstrap([1.0, 2.0, 3.0, 5.0], ["a", "a", "b", "c"])
    >>> interval.estimate, interval.n_clusters, interval.n_values
    (2.75, 3, 4)
    """
    columns = aligned("values", *(values if isinstance(values, tuple) else (values,)))
    codes = cluster_codes(clusters, len(columns[0]))

    def evaluate(times: np.ndarray) -> np.ndarray:
        if statistic is np.mean and len(columns) == 1:
            total, count = np.moveaxis(times @ cluster_sums(codes, columns[0], np.ones_like(columns[0])), -1, 0)
            return total / count
        drawn = (np.repeat(np.arange(len(codes)), row[codes]) for row in times)
        return np.array([float(statistic(*(column[rows] for column in columns))) for rows in drawn])

    return bootstrap_interval(evaluate, codes, n_resamples, confidence, seed, method, unit)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None, *, relative: bool = False, **options: Any
) -> Interval:
    """Estimate mean(b - a) over pairs, or the relative change mean(b) / mean(a) - 1, resampling clusters.

    Parameters
    ----------
    a, b : array [pair]
        Aligned: same sample, same seed; for example trace lengths of the dense and of the pruned run.
    clusters : labels [pair], optional
        The sample of each pair; by default every pair is its own.
    relative : bool
        Ratio of means, not mean of ratios: -0.12 means 12 % less in total. NaN if mean(a) is 0.
    **options
        `n_resamples`, `confidence`, `seed`, `method`, `unit` of `cluster_bootstrap`.

    Returns
    -------
    Interval of the difference, in the unit of the values, or of the relative change, a share.

    Raises
    ------
    ValueError
        As `cluster_bootstrap`.
    """
    before, after = aligned("a and b", a, b)
    codes = cluster_codes(np.arange(len(before)) if clusters is None else clusters, len(before))
    if not relative:
        return cluster_bootstrap(after - before, codes, **options)
    sums = cluster_sums(codes, before, after)

    def evaluate(times: np.ndarray) -> np.ndarray:
        total_before, total_after = np.moveaxis(times @ sums, -1, 0)
        defined = total_before != 0
        return np.where(defined, total_after / np.where(defined, total_before, 1.0) - 1.0, np.nan)

    return bootstrap_interval(evaluate, codes, **options)


def proportion_interval(correct: ArrayLike, *, confidence: float = 0.95, unit: str = "sample") -> Interval:
    """Estimate a proportion with Wilson's interval, for one 0/1 value per sample.

    With several values per sample (seeds, steps) the values are not independent: use `cluster_bootstrap`.

    Parameters
    ----------
    correct : bool or 0/1 array [sample]
    confidence : float in (0, 1)
        Nominal coverage of the interval.
    unit : str
        What one value stands for, in the singular; `str()` of the interval names it.

    Returns
    -------
    Interval, 0 to 1.

    Raises
    ------
    ValueError
        If empty, if a value is neither 0 nor 1, or for a confidence out of range.
    """
    (right,) = aligned("correct", correct)
    if not np.isin(right, (0, 1)).all():
        raise ValueError(f"correct must be 0 or 1 per sample; got {right[~np.isin(right, (0, 1))][0]}")
    check_confidence(confidence)
    n = len(right)
    bounds = stats.binomtest(int(right.sum()), n).proportion_ci(confidence, method="wilson")
    return Interval(float(right.mean()), float(bounds.low), float(bounds.high), n, n, confidence, "wilson", unit)
