"""Estimates with honest intervals: samples are resampled, never steps.

Steps of one sample resemble each other, so an interval that resamples steps is far too narrow (design notes,
section 4.2). A cluster is one sample. Correlations live in `correlations`, tests against a null in `nulls`, what many
tests together allow to say in `claims`; all are importable from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from visionpulse_analysis.metrics.bootstrap import (
    RESAMPLING,
    Method,
    check_options,
    resampled_interval,
    studentized_ratio,
)
from visionpulse_analysis.metrics.claims import Claim, holm, joint_confidence, judge, judge_jointly
from visionpulse_analysis.metrics.clusters import aligned, cluster_codes, cluster_sums, one_choice
from visionpulse_analysis.metrics.correlations import correlation
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.metrics.nulls import (
    ExchangeNull,
    McNemar,
    PermutationTest,
    ShapeNull,
    exchange_null,
    mcnemar,
    permutation_test,
    shape_permutation_null,
)
from visionpulse_analysis.metrics.score_intervals import tango, wilson

__all__ = [
    "Claim",
    "Estimate",
    "ExchangeNull",
    "McNemar",
    "Method",
    "PermutationTest",
    "ShapeNull",
    "cluster_bootstrap",
    "correlation",
    "exchange_null",
    "holm",
    "joint_confidence",
    "judge",
    "judge_jointly",
    "mcnemar",
    "paired_difference",
    "permutation_test",
    "proportion_interval",
    "shape_permutation_null",
]

METHODS: tuple[Method, ...] = ("auto", "score", "studentized", *RESAMPLING)


def cluster_bootstrap(
    values: ArrayLike | tuple[ArrayLike, ...],
    clusters: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    method: Method = "auto",
    unit: str = "sample",
) -> Estimate:
    """Estimate a statistic over all values, with an interval from resampling whole clusters.

    Parameters
    ----------
    values : array [value], or a tuple of aligned arrays [value] passed to `statistic` one by one
    clusters : labels [value]
        The sample each value belongs to.
    statistic : callable, values -> float
        Must not depend on the order of the values. Only the mean (default) has "score" and "studentized" intervals.
    n_resamples : int, >= 2
        Draws of as many clusters as there are, with replacement.
    confidence : float in (0, 1)
        Nominal coverage of the interval.
    seed : int, >= 0
        Of the draws; the same seed gives the same interval.
    method : "auto", "score", "studentized", "expanded", "percentile" or "bca"
        "auto" takes "score" for the mean of values that are all 0 or 1, "studentized" for other means, and "expanded"
        for other statistics. Name "studentized" for counts: where all happen to be 0 they look like shares, whose
        interval ends at 1. See the notes.
    unit : str
        What one cluster is, in the singular; `str()` of the interval names it.

    Returns
    -------
    Estimate; `refused` says why where there is none.

    Raises
    ------
    ValueError
        If values are empty, NaN, infinite or of unequal length, an option is out of range, "score" is asked for values
        other than 0 and 1, or "score" or "studentized" for another statistic than the mean. Drop undefined values first
        and say how many.

    Notes
    -----
    "studentized" measures every resample by its own jackknife standard error (the bootstrap-t: Efron & Tibshirani
    1993, section 12.5; Hall 1988, Annals of Statistics 16:927). It widens the levels by the t quantile and
    sqrt(n / (n - 1)) as Hesterberg (2015, The American Statistician 69:371) does for percentiles. It follows skewness,
    and clusters whose values go with their size. It is refused with fewer than 6 clusters, where a few hold nearly
    all values, and where so few clusters
    differ from the others that nothing bounds how far one can.

    "score" is for shares: Wilson's interval for as many values as there are clusters of equal size (Kish 1965, section
    8.2), which holds even where all values of a cluster agree, and inside it the studentized one where there is
    one. With one value per cluster it is Wilson's interval itself. It exists for 0 of n, too.

    "expanded" are percentiles at those wider levels (Hesterberg 2015), "percentile" at the plain ones, "bca" corrects
    bias and skewness (Efron 1987, JASA 82:171). All three are too narrow where clusters are few and unequal.

    How often 95 % intervals hold the truth, with clusters of 5 to 500 values whose sizes spread evenly over the
    logarithm (``python tests/interval_coverage.py``; a refused interval counts as a miss)::

              clusters  auto, 12  auto, 30  auto, 300  expanded, 12  expanded, 30  expanded, 300
                normal       .95       .96        .97           .92           .94            .97
    values follow size       .93       .96        .96           .72           .87            .94
             lognormal       .92       .92        .93           .84           .87            .93
           rare events       .99       .99        .96           .41           .59            .92
         common events       .94       .96        .95           .91           .94            .95

    Examples
    --------
    >>> interval = cluster_bootstrap([1.0, 2.0, 3.0, 5.0], ["a", "a", "b", "c"])
    >>> interval.value, interval.n_clusters, interval.n_values
    (2.75, 3, 4)
    >>> interval.refused
    '3 samples, at least 6 are needed'
    """
    one_choice(method, METHODS, "method")
    check_options(n_resamples, confidence)
    columns = aligned("values", *(values if isinstance(values, tuple) else (values,)))
    codes = cluster_codes(clusters, len(columns[0]))
    of_mean = statistic is np.mean and len(columns) == 1
    if method == "auto":
        method = "expanded" if not of_mean else "score" if _is_share(columns[0]) else "studentized"
    if method in ("score", "studentized"):
        if not of_mean:
            raise ValueError(f'method "{method}" is for the mean of one array; take "expanded" for other statistics')
        if method == "score":
            return _share(columns[0], codes, n_resamples, confidence, seed, unit)
        sums, counts = cluster_sums(codes, columns[0], np.ones_like(columns[0])).T
        return studentized_ratio(sums, counts, len(codes), n_resamples, confidence, seed, unit)

    def evaluate(times: np.ndarray) -> np.ndarray:
        if of_mean:
            total, count = np.moveaxis(times @ cluster_sums(codes, columns[0], np.ones_like(columns[0])), -1, 0)
            return total / count
        drawn = (np.repeat(np.arange(len(codes)), row[codes]) for row in times)
        return np.array([float(statistic(*(column[rows] for column in columns))) for rows in drawn])

    return resampled_interval(evaluate, codes, n_resamples, confidence, seed, method, unit)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    relative: bool = False,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    method: Method = "auto",
    unit: str = "sample",
) -> Estimate:
    """Estimate mean(b - a) over pairs, or the relative change mean(b) / mean(a) - 1, resampling clusters.

    Parameters
    ----------
    a, b : array [pair]
        Aligned: same sample, same seed; for example trace lengths of the dense and of the pruned run.
    clusters : labels [pair], optional
        The sample of each pair; by default every pair is its own.
    relative : bool
        Ratio of means, not mean of ratios: -0.12 means 12 % less in total. NaN if mean(a) is 0.
    n_resamples, confidence, seed, unit
        As in `cluster_bootstrap`.
    method : "auto", "score", "studentized", "expanded", "percentile" or "bca"
        As in `cluster_bootstrap`. "score", which "auto" takes for differences of values that are all 0 or 1, is Tango's
        interval for paired shares (1998, Statistics in Medicine 17:891), with what `cluster_bootstrap` says of several
        values per cluster.

    Returns
    -------
    Estimate of the difference, in the unit of the values, or of the relative change, a share.

    Raises
    ------
    ValueError
        As `cluster_bootstrap`; or for "score" of a relative change.
    """
    before, after = aligned("a and b", a, b)
    codes = cluster_codes(np.arange(len(before)) if clusters is None else clusters, len(before))
    one_choice(method, METHODS, "method")
    check_options(n_resamples, confidence)
    options: dict[str, Any] = {
        "n_resamples": n_resamples, "confidence": confidence, "seed": seed, "unit": unit
    }  # fmt: skip
    shares = _is_share(before) and _is_share(after)
    if not relative:
        if method == "score" or (method == "auto" and shares):
            if not shares:
                raise ValueError('method "score" is for pairs of values that are 0 or 1; got others')
            return _share_difference(before, after, codes, **options)
        plain: Method = "studentized" if method == "auto" else method
        return cluster_bootstrap(after - before, codes, method=plain, **options)
    if method == "score":
        raise ValueError('method "score" is not for relative changes; take "studentized"')
    sums = cluster_sums(codes, before, after)
    if method in ("auto", "studentized"):
        return studentized_ratio(sums[:, 1], sums[:, 0], len(codes), **options) - 1

    def evaluate(times: np.ndarray) -> np.ndarray:
        total_before, total_after = np.moveaxis(times @ sums, -1, 0)
        defined = total_before != 0
        return np.where(defined, total_after / np.where(defined, total_before, 1.0) - 1.0, np.nan)

    return resampled_interval(evaluate, codes, method=method, **options)


def proportion_interval(
    correct: ArrayLike, clusters: ArrayLike | None = None, *, confidence: float = 0.95, unit: str = "sample"
) -> Estimate:
    """Estimate a share with a score interval, also where all values or none are 1.

    Parameters
    ----------
    correct : bool or 0/1 array [value]
    clusters : labels [value], optional
        The sample of each value, where samples repeat (seeds, steps): then as "score" of `cluster_bootstrap`. By
        default every value is its own sample, and the interval is Wilson's.
    confidence : float in (0, 1)
        Nominal coverage of the interval.
    unit : str
        What one cluster is, in the singular; `str()` of the interval names it.

    Returns
    -------
    Estimate, 0 to 1.

    Raises
    ------
    ValueError
        If empty, if a value is neither 0 nor 1, or for a confidence out of range.

    Examples
    --------
    >>> nothing_lost = proportion_interval([0] * 36)
    >>> f"{nothing_lost.low:.2f} to {nothing_lost.high:.2f}"
    '0.00 to 0.10'
    """
    (right,) = aligned("correct", correct)
    if not _is_share(right):
        raise ValueError(f"correct must be 0 or 1 per sample; got {right[~np.isin(right, (0, 1))][0]}")
    labels = np.arange(len(right)) if clusters is None else clusters
    return cluster_bootstrap(right, labels, confidence=confidence, unit=unit, method="score")


def _is_share(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _share(
    values: np.ndarray, codes: np.ndarray, n_resamples: int, confidence: float, seed: int, unit: str
) -> Estimate:
    if not _is_share(values):
        raise ValueError('method "score" is for values that are 0 or 1; got others: take "studentized"')
    sums, counts = cluster_sums(codes, values, np.ones_like(values)).T
    share = float(values.mean())
    widest = wilson(share, _equal_clusters(counts), confidence)
    inner = studentized_ratio(sums, counts, len(values), n_resamples, confidence, seed, unit)
    return _clipped(inner, widest, counts, "Wilson")


def _share_difference(
    a: np.ndarray, b: np.ndarray, codes: np.ndarray, n_resamples: int, confidence: float, seed: int, unit: str
) -> Estimate:
    sums, counts = cluster_sums(codes, b - a, np.ones_like(a)).T
    lost, won = float((a > b).mean()), float((b > a).mean())
    widest = tango(lost, won, _equal_clusters(counts), confidence)
    inner = studentized_ratio(sums, counts, len(a), n_resamples, confidence, seed, unit)
    return _clipped(inner, widest, counts, "Tango")


def _equal_clusters(counts: np.ndarray) -> float:
    """How many clusters of equal size tell as much as these, where all values of a cluster agree (Kish)."""
    return float(counts.sum() ** 2 / (counts**2).sum())


def _clipped(inner: Estimate, widest: tuple[float, float], counts: np.ndarray, name: str) -> Estimate:
    """The studentized interval inside the one that holds however alike the values of a cluster are."""
    low, high, method = *widest, f"{name}, one value per cluster"
    if counts.max() > 1:
        method = f"{name} and cluster bootstrap, studentized"
        if not inner.refused:
            low, high = max(low, inner.low), min(high, inner.high)
    return replace(inner, low=low, high=high, method=method, refused="")
