"""The interval type and the one bootstrap engine behind every interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from visionpulse_analysis._clusters import one_choice

Method = Literal["expanded", "percentile", "bca"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `str()` gives "0.71 [0.64, 0.78], 200 samples".

    Attributes
    ----------
    estimate, low, high : float
        In the unit of the statistic.
    n_clusters, n_values : int
        How many clusters were resampled, and how many values they hold.
    confidence : float in (0, 1)
        Nominal coverage.
    method : str
        How the interval was made.
    unit : str
        What one cluster is, in the singular: "sample" (one question about one image), "scene" where all samples are
        generated scenes, or whatever else was resampled.

    Notes
    -----
    NaN bounds mean that the data cannot give an interval: fewer than two clusters, an undefined statistic in
    the data or in a resample, or no variation between resamples (all values equal; for proportions use
    `proportion_interval`).
    """

    estimate: float
    low: float
    high: float
    n_clusters: int
    n_values: int
    confidence: float
    method: str
    unit: str = "sample"

    def __str__(self) -> str:
        width = self.high - self.low
        digits = int(np.clip(-np.floor(np.log10(width / 4)), 0, 6)) if width > 0 else 3
        low, high = (f"{bound:.{digits}f}" for bound in (self.low, self.high))
        units = self.unit if self.n_clusters == 1 else f"{self.unit}s"
        return f"{self.estimate:.{digits}f} [{low}, {high}], {self.n_clusters} {units}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; NaN becomes None."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def bootstrap_interval(
    evaluate: Callable[[np.ndarray], np.ndarray],
    codes: np.ndarray,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    method: str = "expanded",
    unit: str = "sample",
) -> Interval:
    """Interval of `evaluate`: how often each cluster is drawn, int [resample, cluster] -> [resample]."""
    one_choice(method, ("expanded", "percentile", "bca"), "method")
    check_confidence(confidence)
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2; got {n_resamples}")
    n = int(codes.max()) + 1
    estimate = float(evaluate(np.ones((1, n), dtype=np.int64))[0])
    low, high = np.nan, np.nan
    if n > 1 and np.isfinite(estimate):
        draws = np.random.default_rng(seed).integers(0, n, size=(n_resamples, n))
        cells = draws + n * np.arange(n_resamples)[:, None]
        resampled = evaluate(np.bincount(cells.ravel(), minlength=n * n_resamples).reshape(n_resamples, n))
        if np.isfinite(resampled).all() and np.ptp(resampled) > 1e-12 * np.abs(resampled).max():
            low, high = np.quantile(resampled, _levels(evaluate, resampled, estimate, n, confidence, method))
    return Interval(estimate, float(low), float(high), n, len(codes), confidence, f"cluster bootstrap, {method}", unit)


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
        return stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tails, n - 1))
    below = (resampled < estimate).mean() + (resampled == estimate).mean() / 2
    bias = stats.norm.ppf(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled)))
    left_out = evaluate(1 - np.eye(n, dtype=np.int64))
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))


def check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}")
