"""How often intervals hold the truth: clusters of very unequal size, as traces of one sample are.

``python tests/interval_coverage.py`` prints the table that the docstring of `cluster_bootstrap` shows;
``tests/test_statistics.py`` compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from visionpulse_analysis.metrics.clusters import Kind
from visionpulse_analysis.metrics.statistics import METHODS, Method, cluster_bootstrap, correlation

Values = tuple[np.ndarray, np.ndarray]  # values [value], cluster [value]
CLUSTERS = (12, 30, 300)
SIMULATIONS = {12: 1000, 30: 1000, 300: 300}


def sizes(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.rint(np.exp(rng.uniform(np.log(5), np.log(500), n))).astype(int)


def follow_size(rng: np.random.Generator, n: int) -> Values:
    """Means of clusters grow with their size."""
    size = sizes(rng, n)
    return (size / 100 * rng.normal(1, 0.5, n)).repeat(size) + rng.normal(size=size.sum()), np.arange(n).repeat(size)


def lognormal(rng: np.random.Generator, n: int) -> Values:
    size = sizes(rng, n)
    return np.exp(rng.normal(size=n)).repeat(size) + rng.normal(size=size.sum()), np.arange(n).repeat(size)


def rare_events(rng: np.random.Generator, n: int) -> Values:
    """One cluster in twenty has events, in three of ten of its values."""
    size = sizes(rng, n)
    chance = np.where(rng.random(n) < 0.05, 0.3, 0.0).repeat(size)
    return (rng.random(size.sum()) < chance).astype(float), np.arange(n).repeat(size)


def common_events(rng: np.random.Generator, n: int) -> Values:
    """Shares of clusters spread around 0.8."""
    size = sizes(rng, n)
    chance = rng.beta(8, 2, n).repeat(size)
    return (rng.random(size.sum()) < chance).astype(float), np.arange(n).repeat(size)


def normal(rng: np.random.Generator, n: int) -> Values:
    size = sizes(rng, n)
    return rng.normal(size=n).repeat(size) + rng.normal(size=size.sum()), np.arange(n).repeat(size)


MEAN_SIZE = 495 / np.log(100)  # of a size spread evenly over the logarithm, from 5 to 500
MEAN_SQUARE = (500**2 - 5**2) / 2 / np.log(100)
CASES: dict[str, tuple[Callable[[np.random.Generator, int], Values], float]] = {
    "normal": (normal, 0.0),
    "values follow size": (follow_size, MEAN_SQUARE / MEAN_SIZE / 100),
    "lognormal": (lognormal, float(np.exp(0.5))),
    "rare events": (rare_events, 0.05 * 0.3),
    "common events": (common_events, 0.8),
}


def coverage(case: str, n: int, simulations: int, method: Method = "auto", seed: int = 20261128) -> float:
    """Share of the intervals that hold the truth; a refused one does not."""
    draw, truth = CASES[case]
    rng, hits = np.random.default_rng([seed, n]), 0
    for simulation in range(simulations):
        found = cluster_bootstrap(*draw(rng, n), seed=simulation, method=method)
        hits += bool(found.low <= truth <= found.high)
    return hits / simulations


def correlation_coverage(kind: Kind, n: int, simulations: int, seed: int = 20260601) -> float:
    """The same of `correlation`: within a sample r is 0.6; samples differ in x and y, unrelated, so pooled r is 0.3."""
    rng, hits, codes = np.random.default_rng(seed), 0, np.repeat(np.arange(n), 10)
    for simulation in range(simulations):
        step = rng.normal(size=10 * n)
        x = rng.normal(size=n)[codes] + step
        y = rng.normal(size=n)[codes] + 0.6 * step + 0.8 * rng.normal(size=10 * n)
        interval = correlation(x, y, codes, kind=kind, n_resamples=499, seed=simulation)
        hits += interval.low <= {"pooled": 0.3, "within": 0.6}[kind] <= interval.high
    return hits / simulations


def table(simulations: dict[int, int] = SIMULATIONS, methods: tuple[Method, ...] = ("auto", "expanded")) -> str:
    """One row per case, per method its coverage with `CLUSTERS` clusters."""
    rows = [["clusters", *(f"{method}, {n}" for method in methods for n in CLUSTERS)]]
    rows += [
        [case, *(f"{coverage(case, n, simulations[n], m):.2f}".lstrip("0") for m in methods for n in CLUSTERS)]
        for case in CASES
    ]
    return "\n".join(
        "  ".join(cell.rjust(max(len(row[i]) for row in rows)) for i, cell in enumerate(row)) for row in rows
    )


if __name__ == "__main__":
    wanted = tuple(method for method in METHODS if method in sys.argv[1:]) or ("auto", "expanded")
    print(table(methods=wanted))
    for kind in ("pooled", "within"):
        shares = ", ".join(f"{n} samples {correlation_coverage(kind, n, 4000):.3f}" for n in (12, 20, 40, 60))
        print(f"correlation, {kind}: {shares}")
