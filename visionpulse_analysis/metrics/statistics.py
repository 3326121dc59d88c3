"""Estimates with honest intervals: samples are resampled, never steps.

Steps of one sample resemble each other, so an interval that resamples steps is far too narrow (design notes,
section 4.2). A cluster is one sample. Tests against a null live in `nulls`, what estimates allow to say in `claims`;
all are importable from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

from visionpulse_analysis.metrics.claims import Claim, holm, joint_confidence, judge, judge_jointly
from visionpulse_analysis.metrics.clusters import (
    Kind,
    aligned,
    centre_within,
    cluster_codes,
    cluster_sums,
    moments,
    one_choice,
    pearson_from_sums,
)
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.metrics.nulls import (
    McNemar,
    Null,
    PermutationTest,
    exchange_null,
    mcnemar,
    permutation_test,
    shape_permutation_null,
)

__all__ = [
    "Claim",
    "Estimate",
    "McNemar",
    "Method",
    "Null",
    "PermutationTest",
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

Method = Literal["auto", "score", "studentized", "expanded"]
METHODS: tuple[Method, ...] = get_args(Method)
CELLS = 2_000_000  # cells of [resample, cluster] at a time
# Clusters of equal size that would weigh as much as those given, (sum of sizes)^2 / sum of squares (Kish, Survey
# Sampling, 1965): with fewer, one cluster decides, and no resample of the others tells how far it may be off.
FEWEST = 3.0


@dataclass(frozen=True)
class _Resampling:
    """How clusters are drawn, and how wide the interval is."""

    n_resamples: int
    confidence: float
    seed: int
    unit: str

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be in (0, 1); got {self.confidence}")
        if self.n_resamples < 2:
            raise ValueError(f"n_resamples must be at least 2; got {self.n_resamples}")

    @property
    def tails(self) -> np.ndarray:
        return np.array([(1 - self.confidence) / 2, (1 + self.confidence) / 2])

    def too_few(self, n: int, least: int) -> str:
        """Why there is no interval with n clusters; empty from `least` on."""
        return "" if n >= least else f"{n} {self.unit if n == 1 else f'{self.unit}s'}, at least {least} are needed"


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
    method : "auto", "score", "studentized" or "expanded"
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

    "expanded" are percentiles at those wider levels (Hesterberg 2015): too narrow where clusters are few and unequal.

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
    resampling = _Resampling(n_resamples, confidence, seed, unit)
    columns = aligned("values", *(values if isinstance(values, tuple) else (values,)))
    codes = cluster_codes(clusters, len(columns[0]))
    of_mean = statistic is np.mean and len(columns) == 1
    if method == "auto":
        method = "expanded" if not of_mean else "score" if _is_share(columns[0]) else "studentized"
    sums, counts = cluster_sums(codes, columns[0], np.ones_like(columns[0])).T
    if method != "expanded":
        if not of_mean:
            raise ValueError(f'method "{method}" is for the mean of one array; take "expanded" for other statistics')
        if method == "score" and not _is_share(columns[0]):
            raise ValueError('method "score" is for values that are 0 or 1; got others: take "studentized"')
        inner = _studentized(sums, counts, len(codes), resampling)
        if method == "studentized":
            return inner
        widest = wilson(float(columns[0].mean()), _equal_clusters(counts), confidence)
        return _clipped(inner, widest, counts, "Wilson")

    def evaluate(times: np.ndarray) -> np.ndarray:
        if of_mean:
            total, count = (times @ np.stack([sums, counts], -1)).T
            return total / count
        drawn = (np.repeat(np.arange(len(codes)), row[codes]) for row in times)
        return np.array([float(statistic(*(column[rows] for column in columns))) for rows in drawn])

    return _expanded(evaluate, codes, resampling)


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
    method : "auto", "score", "studentized" or "expanded"
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
    resampling = _Resampling(n_resamples, confidence, seed, unit)
    shares = _is_share(before) and _is_share(after)
    if relative:
        if method == "score":
            raise ValueError('method "score" is not for relative changes; take "studentized"')
        sums = cluster_sums(codes, before, after)
        if method != "expanded":
            return _studentized(sums[:, 1], sums[:, 0], len(codes), resampling) - 1

        def evaluate(times: np.ndarray) -> np.ndarray:
            total_before, total_after = np.moveaxis(times @ sums, -1, 0)
            defined = total_before != 0
            return np.where(defined, total_after / np.where(defined, total_before, 1.0) - 1.0, np.nan)

        return _expanded(evaluate, codes, resampling)
    if method == "score" and not shares:
        raise ValueError('method "score" is for pairs of values that are 0 or 1; got others')
    if method == "score" or (method == "auto" and shares):
        changes, counts = cluster_sums(codes, after - before, np.ones_like(before)).T
        lost, won = float((before > after).mean()), float((after > before).mean())
        inner = _studentized(changes, counts, len(codes), resampling)
        return _clipped(inner, tango(lost, won, _equal_clusters(counts), confidence), counts, "Tango")
    of_differences: Method = "studentized" if method == "auto" else method
    return cluster_bootstrap(after - before, codes, method=of_differences, **vars(resampling))


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


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    clusters: ArrayLike,
    *,
    kind: Kind = "pooled",
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

    Notes
    -----
    The interval is "expanded", as of `cluster_bootstrap`. Where samples differ as much as steps, 95 % intervals of
    pooled r hold the truth in 91 % of cases with 12 samples, 92 % with 20 and 93 % with 40 (within: 94, 93 and 95 %;
    ``python tests/interval_coverage.py``).
    """
    one_choice(kind, ("pooled", "within"), "kind")
    resampling = _Resampling(n_resamples, confidence, seed, unit)
    first, second = aligned("x and y", x, y)
    codes = cluster_codes(clusters, len(first))
    groups = codes if kind == "within" else np.zeros_like(codes)
    sums = moments(codes, centre_within(first, groups), centre_within(second, groups))
    result = _expanded(lambda times: pearson_from_sums(times @ sums), codes, resampling)
    return replace(result, method=f"{result.method}, {kind} pearson")


def wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval (1927, JASA 22:209) of a share among n values; n may be an effective number, > 0."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # At the ends rounding would leave what is 0 or 1.
    return (0.0 if share == 0 else float(low)), (1.0 if share == 1 else float(high))


def tango(lost: float, won: float, n: float, confidence: float) -> tuple[float, float]:
    """Tango's interval (1998, Statistics in Medicine 17:891) of won - lost, shares of n pairs.

    It inverts the score test of McNemar's table; n may be an effective number, > 0.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))

    def score(difference: float) -> float:
        # The share of lost pairs that is most likely if the true difference is this one: a root of a quadratic.
        b = (2 - won + lost) * difference - won - lost
        most_likely = (np.sqrt(b * b + 8 * lost * difference * (1 - difference)) - b) / 4
        variance = 2 * most_likely + difference * (1 - difference)
        distance = won - lost - difference
        return distance / np.sqrt(max(variance, 1e-300) / n) if distance else 0.0

    found, edge = won - lost, 1 - 1e-12
    low = -1.0 if found <= -edge or score(-edge) < z else _root(lambda d: score(d) - z, -edge, found)
    high = 1.0 if found >= edge or score(edge) > -z else _root(lambda d: score(d) + z, found, edge)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    found: Any = brentq(function, low, high)
    return float(found)


def _expanded(evaluate: Callable[[np.ndarray], np.ndarray], codes: np.ndarray, resampling: _Resampling) -> Estimate:
    """Interval from quantiles of `evaluate`: how often each cluster is drawn, int [resample, cluster] -> [resample]."""
    n, unit = int(codes.max()) + 1, resampling.unit
    value = float(evaluate(np.ones((1, n), dtype=np.int64))[0])
    low, high, refused = np.nan, np.nan, resampling.too_few(n, 2)
    if not np.isfinite(value):
        refused = "the statistic is not defined for these values"
    elif not refused:
        resampled = evaluate(_drawn(n, resampling.n_resamples, np.random.default_rng(resampling.seed)))
        if not np.isfinite(resampled).all():
            refused = "the statistic is not defined in every resample"
        elif np.ptp(resampled) <= 1e-12 * np.abs(resampled).max():
            refused = f"nothing varies from {unit} to {unit}"
        else:
            low, high = np.quantile(resampled, _expanded_levels(resampling.tails, n))
    said = "cluster bootstrap, expanded"
    return Estimate(value, float(low), float(high), n, len(codes), resampling.confidence, said, unit, refused)


def _studentized(top: np.ndarray, bottom: np.ndarray, n_values: int, resampling: _Resampling) -> Estimate:
    """Bootstrap-t interval of sum(top) / sum(bottom), both float64 [cluster]; a mean has the counts at the bottom.

    Every resample is measured by its own standard error, that of the delete-one jackknife, and the levels are
    widened as those of "expanded".
    """
    n, total, unit = len(top), float(bottom.sum()), resampling.unit
    ratio = float(top.sum() / total) if total else np.nan
    low, high, refused = np.nan, np.nan, resampling.too_few(n, 6)
    if not np.isfinite(ratio):
        refused = "the ratio is not defined: what it divides by adds up to 0"
    elif not refused and total**2 < FEWEST * float((bottom**2).sum()):
        refused = f"a few {unit}s hold nearly all values"
    elif not refused:
        errors, refused = _studentized_errors(top, bottom, resampling)
        low, high = ratio - errors[1], ratio - errors[0]
    said = "cluster bootstrap, studentized"
    return Estimate(ratio, low, high, n, n_values, resampling.confidence, said, unit, refused)


def _studentized_errors(
    top: np.ndarray, bottom: np.ndarray, resampling: _Resampling
) -> tuple[tuple[float, float], str]:
    """How far the ratio may err, down and up; or NaN twice, and why nothing can be said."""
    n, unit, n_resamples, none = len(top), resampling.unit, resampling.n_resamples, (np.nan, np.nan)
    # Each cluster's own part in the error of the ratio, which is linear in it: these add up to 0.
    error = top - top.sum() / bottom.sum() * bottom
    scale = float(_standard_error(np.ones((1, n)), error, bottom)[0])
    if np.abs(error).max() <= 1e-12 * np.abs(top).max():
        return none, f"nothing varies from {unit} to {unit}"
    rank = int(_expanded_levels(resampling.tails[:1], n)[0] * (n_resamples + 1))
    if rank < 1:
        return none, f"{n_resamples} resamples of {n} {unit}s do not reach {100 * resampling.confidence:g} %; draw more"
    rng, found = np.random.default_rng(resampling.seed), []
    size = max(1, CELLS // n)
    for start in range(0, n_resamples, size):
        times = _drawn(n, min(size, n_resamples - start), rng)
        found.append(_t_values(times, error, bottom, scale))
    t_values = np.sort(np.concatenate(found))
    if np.isnan(t_values).any():
        return none, "the ratio is not defined in every resample"
    if not np.isfinite([t_values[rank - 1], t_values[-rank]]).all():
        return none, f"too few of the {n} {unit}s differ from the others to tell how far one can"
    return (float(t_values[rank - 1] * scale), float(t_values[-rank] * scale)), ""


def _t_values(times: np.ndarray, error: np.ndarray, bottom: np.ndarray, scale: float) -> np.ndarray:
    """How far each resample's ratio lies from that of all clusters, in its own standard errors: [resample]."""
    total = times @ bottom
    away = np.divide(times @ error, total, out=np.full(len(times), np.nan), where=total != 0)
    width = _standard_error(times, error - away[:, None] * bottom, bottom)
    flat = width <= 1e-9 * scale  # equal clusters only: any distance is infinitely many of its standard errors
    endless = np.where(np.abs(away) <= 1e-9 * scale, 0.0, np.copysign(np.inf, away))
    return np.where(flat, endless, away / np.where(flat, 1.0, width))


def _standard_error(times: np.ndarray, error: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Jackknife standard error [resample] of a ratio whose clusters, drawn `times`, err by `error`."""
    n, rest = len(bottom), (times @ bottom)[:, None] - bottom
    shift = np.divide(error, rest, out=np.zeros(rest.shape), where=(rest != 0) & (times > 0))
    return np.sqrt((n - 1) / n * (times * shift**2).sum(axis=1))


def _drawn(n: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n clusters is drawn: int [resample, cluster], n draws a resample."""
    cells = rng.integers(0, n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=n * n_resamples).reshape(n_resamples, n)


def _expanded_levels(tails: np.ndarray, n: int) -> np.ndarray:
    """Quantile levels widened for n clusters: by the t quantile and sqrt(n / (n - 1)) (Hesterberg 2015)."""
    return stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tails, n - 1))


def _is_share(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


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
