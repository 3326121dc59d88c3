"""The bootstrap engines behind every interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats

from visionpulse_analysis.metrics.clusters import one_choice
from visionpulse_analysis.metrics.estimate import Estimate

Method = Literal["auto", "score", "studentized", "expanded", "percentile", "bca"]
RESAMPLING: tuple[Method, ...] = ("expanded", "percentile", "bca")
CELLS = 2_000_000  # cells of [resample, cluster] at a time
# Clusters of equal size that would weigh as much as those given, (sum of sizes)^2 / sum of squares (Kish, Survey
# Sampling, 1965): with fewer, one cluster decides, and no resample of the others tells how far it may be off.
FEWEST = 3.0


def resampled_interval(
    evaluate: Callable[[np.ndarray], np.ndarray],
    codes: np.ndarray,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    method: str = "expanded",
    unit: str = "sample",
) -> Estimate:
    """Estimate from quantiles of `evaluate`: how often each cluster is drawn, int [resample, cluster] -> [resample]."""
    one_choice(method, RESAMPLING, "method")
    check_options(n_resamples, confidence)
    n = int(codes.max()) + 1
    estimate = float(evaluate(np.ones((1, n), dtype=np.int64))[0])
    low, high, refused = np.nan, np.nan, too_few_clusters(n, unit, 2)
    if not np.isfinite(estimate):
        refused = "the statistic is not defined for these values"
    elif not refused:
        resampled = evaluate(drawn(n, n_resamples, np.random.default_rng(seed)))
        if not np.isfinite(resampled).all():
            refused = "the statistic is not defined in every resample"
        elif np.ptp(resampled) <= 1e-12 * np.abs(resampled).max():
            refused = f"nothing varies from {unit} to {unit}"
        else:
            low, high = np.quantile(resampled, _levels(evaluate, resampled, estimate, n, confidence, method))
    said = f"cluster bootstrap, {method}"
    return Estimate(estimate, float(low), float(high), n, len(codes), confidence, said, unit, refused)


def _levels(
    evaluate: Callable[[np.ndarray], np.ndarray],
    resampled: np.ndarray,
    estimate: float,
    n: int,
    confidence: float,
    method: str,
) -> np.ndarray:
    """Return the two quantile levels of the resampled statistics that bound the interval."""
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "percentile":
        return tails
    if method == "expanded":
        return expanded(tails, n)
    below = (resampled < estimate).mean() + (resampled == estimate).mean() / 2
    bias = stats.norm.ppf(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled)))
    left_out = evaluate(1 - np.eye(n, dtype=np.int64))
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))


def studentized_ratio(
    top: np.ndarray,
    bottom: np.ndarray,
    n_values: int,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    unit: str = "sample",
) -> Estimate:
    """Bootstrap-t interval of sum(top) / sum(bottom), both float64 [cluster]; a mean has the counts at the bottom.

    Every resample is measured by its own standard error, that of the delete-one jackknife, and the levels are
    widened as those of "expanded".
    """
    check_options(n_resamples, confidence)
    n, total = len(top), float(bottom.sum())
    ratio = float(top.sum() / total) if total else np.nan
    low, high, refused = np.nan, np.nan, too_few_clusters(n, unit, 6)
    if not np.isfinite(ratio):
        refused = "the ratio is not defined: what it divides by adds up to 0"
    elif not refused and total**2 < FEWEST * float((bottom**2).sum()):
        refused = f"a few {unit}s hold nearly all values"
    elif not refused:
        errors, refused = _studentized(top, bottom, n_resamples, confidence, seed, unit)
        low, high = ratio - errors[1], ratio - errors[0]
    return Estimate(ratio, low, high, n, n_values, confidence, "cluster bootstrap, studentized", unit, refused)


def _studentized(
    top: np.ndarray, bottom: np.ndarray, n_resamples: int, confidence: float, seed: int, unit: str
) -> tuple[tuple[float, float], str]:
    """How far the ratio may err, down and up; or NaN twice, and why nothing can be said."""
    n, none = len(top), (np.nan, np.nan)
    error = top - top.sum() / bottom.sum() * bottom  # of each cluster; they add up to 0
    scale = float(_standard_error(np.ones((1, n)), error, bottom)[0])
    if np.abs(error).max() <= 1e-12 * np.abs(top).max():
        return none, f"nothing varies from {unit} to {unit}"
    rank = int(expanded(np.array([(1 - confidence) / 2]), n)[0] * (n_resamples + 1))
    if rank < 1:
        return none, f"{n_resamples} resamples of {n} {unit}s do not reach {100 * confidence:g} %; draw more"
    rng, found = np.random.default_rng(seed), []
    size = max(1, CELLS // n)
    for start in range(0, n_resamples, size):
        times = drawn(n, min(size, n_resamples - start), rng)
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


def drawn(n: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n clusters is drawn: int [resample, cluster], n draws a resample."""
    cells = rng.integers(0, n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=n * n_resamples).reshape(n_resamples, n)


def expanded(tails: np.ndarray, n: int) -> np.ndarray:
    """Quantile levels widened for n clusters: by the t quantile and sqrt(n / (n - 1)) (Hesterberg 2015)."""
    return stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tails, n - 1))


def too_few_clusters(n: int, unit: str, least: int) -> str:
    """Why there is no interval with so few clusters; empty from `least` on."""
    return "" if n >= least else f"{n} {unit if n == 1 else f'{unit}s'}, at least {least} are needed"


def check_options(n_resamples: int, confidence: float) -> None:
    """Raise ValueError for a number of resamples or a confidence out of range."""
    check_confidence(confidence)
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2; got {n_resamples}")


def check_confidence(confidence: float) -> None:
    """Raise ValueError for a confidence out of range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}")
