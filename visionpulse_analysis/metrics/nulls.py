"""Tests against a stated null; everything here is importable from `visionpulse_analysis.metrics.statistics`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from visionpulse_analysis._util.checks import attention_array
from visionpulse_analysis.metrics.clusters import (
    Kind,
    aligned,
    centre_within,
    cluster_codes,
    cluster_sums,
    one_choice,
    pearson_from_sums,
)

LARGEST_SUM = 100_000  # of whole differences, up to which all sign patterns are counted


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of two paired accuracies.

    `b` pairs are right in a only, `c` in b only; `p` is the two-sided binomial probability of so uneven a split.
    """

    b: int
    c: int
    p: float


def mcnemar(a_correct: ArrayLike, b_correct: ArrayLike) -> McNemar:
    """Test whether two runs on the same samples differ in accuracy (exact, conservative; one pair per sample).

    Parameters
    ----------
    a_correct, b_correct : bool or 0/1 array [sample]
        Several seeds of one sample are not independent pairs: use `permutation_test` with clusters.

    Returns
    -------
    McNemar; p = 1 without discordant pairs.

    Raises
    ------
    ValueError
        If empty, of unequal length, or not 0 or 1.
    """
    first, second = aligned("a_correct and b_correct", a_correct, b_correct)
    if not np.isin([first, second], (0, 1)).all():
        raise ValueError("a_correct and b_correct must be 0 or 1 per sample; got other values")
    b, c = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    return McNemar(b, c, float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0)


@dataclass(frozen=True)
class PermutationTest:
    """Paired permutation test: `difference` = mean(b - a), `p` two-sided under random signs of `n_clusters`."""

    difference: float
    p: float
    n_clusters: int


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    n_permutations: int = 9999,
    seed: int = 0,
) -> PermutationTest:
    """Test mean(b - a) = 0 by flipping the sign of all differences of a cluster together.

    Exact, over all sign patterns, where the differences are whole numbers (right or wrong, tokens) or where there are
    no more than `n_permutations` patterns; else sampled, counting the observed one. With one 0 or 1 per sample it is
    McNemar's exact test. With m clusters that differ p cannot fall below 2 / 2^m.

    Parameters
    ----------
    a, b : array [pair]
    clusters : labels [pair], optional
        The sample of each pair; by default every pair is its own.
    n_permutations : int, >= 1
    seed : int, >= 0
        Of the sampled sign patterns.

    Returns
    -------
    PermutationTest; p = NaN for a single cluster, 1 if no pair differs.

    Raises
    ------
    ValueError
        If the input is empty, NaN or of unequal length, or `n_permutations` is below 1.
    """
    before, after = aligned("a and b", a, b)
    codes = cluster_codes(np.arange(len(before)) if clusters is None else clusters, len(before))
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1; got {n_permutations}")
    sums = cluster_sums(codes, after - before)[:, 0]
    difference, p = float(sums.sum() / len(before)), np.nan
    if len(sums) > 1 and (sums == np.rint(sums)).all() and np.abs(sums).sum() <= LARGEST_SUM:
        p = _exact_p(np.abs(sums).astype(int), abs(int(sums.sum())))
    elif len(sums) > 1:
        p = stats.permutation_test(
            (sums,), np.sum, permutation_type="samples", vectorized=True, n_resamples=n_permutations, rng=seed
        ).pvalue
    return PermutationTest(difference, float(p), len(sums))


def _exact_p(sizes: np.ndarray, observed: int) -> float:
    """Share of all sign patterns of whole numbers whose sum is at least as far from 0, by counting sums up."""
    chance = np.ones(1)  # of every sum from -reach to reach, in steps of 1
    for size in sizes[sizes > 0]:
        longer = np.zeros(len(chance) + 2 * size)
        longer[: len(chance)] += chance / 2
        longer[2 * size :] += chance / 2
        chance = longer
    reach = len(chance) // 2
    return min(1.0, float(chance[: reach - observed + 1].sum() + chance[reach + observed :].sum()))


@dataclass(frozen=True)
class Null:
    """An observed correlation beside what it is where a stated link is broken by exchanging at random.

    `r`, -1 to 1, is that of the data. `low` and `high` are the 2.5 % and 97.5 % points of the null r, `mean` its mean,
    over `n_permutations`; `p` is two-sided. All four are NaN if r is undefined in the data or in a permutation (a
    constant count).
    """

    r: float
    mean: float
    low: float
    high: float
    p: float
    n_permutations: int

    @classmethod
    def of(cls, r: float, null: np.ndarray) -> Null:
        """Compare `r` with that of every permutation, `null` float [permutation]."""
        if not np.isfinite([r, *null]).all():
            return cls(r, np.nan, np.nan, np.nan, np.nan, len(null))
        rounding = 1e-12  # permutations that change nothing count as equal
        tail = min((null >= r - rounding).sum(), (null <= r + rounding).sum())
        low, high = np.quantile(null, [0.025, 0.975])
        p = min(1.0, 2 * (tail + 1) / (len(null) + 1))
        return cls(r, float(null.mean()), float(low), float(high), float(p), len(null))

    def to_json(self) -> dict[str, float | None]:
        """The null as JSON takes it; NaN becomes None."""
        found = {name: getattr(self, name) for name in ("mean", "low", "high", "p")}
        return {name: value if np.isfinite(value) else None for name, value in found.items()}


def shape_permutation_null(
    attention: Sequence[ArrayLike],
    threshold: float,
    *,
    relative: bool = False,
    kind: Kind = "pooled",
    n_permutations: int = 200,
    seed: int = 0,
) -> Null:
    """Ask whether r(mass, active count) is more than arithmetic: the same shapes, scaled by the mass.

    Each step's row is its mass times its shape. The null gives every step the shape of a random step of its sample and
    keeps its mass, counts again the patches above the threshold, and correlates again (design notes, section
    4.1).

    Parameters
    ----------
    attention : list of arrays [step, patch], one per sample, >= 0, at one layer, head mean
        Needs 8 to 16 bytes x steps x patches of memory over all samples.
    threshold : float, > 0
        As in `measures.active_count`.
    relative : bool
        Whether the threshold is a multiple of 1/n.
    kind : "pooled" or "within"
        The correlation, as in `correlation`.
    n_permutations : int, >= 1
    seed : int, >= 0

    Returns
    -------
    Null. Steps without mass have no shape: they keep their count of 0 in the data and in the null.

    Raises
    ------
    ValueError
        If there is no step, a weight is NaN or negative, or an option is out of range.
    """
    one_choice(kind, ("pooled", "within"), "kind")
    rows = [attention_array(sample, f"attention[{i}]", ndim=2) for i, sample in enumerate(attention)]
    sizes = [row.shape[-1] for row in rows]
    if not rows or any(row.ndim != 2 for row in rows) or sum(len(row) for row in rows) == 0:
        raise ValueError("attention must be a list of arrays [step, patch] with at least one step")
    if not threshold > 0 or n_permutations < 1:
        raise ValueError(f"threshold must be > 0 and n_permutations >= 1; got {threshold}, {n_permutations}")

    steps = [len(row) for row in rows]
    sample = np.repeat(np.arange(len(rows)), steps)
    mass = np.concatenate([row.sum(-1) for row in rows])
    live = mass > 0
    level = np.repeat([threshold / n if relative else threshold for n in sizes], steps)[live]
    level = level / mass[live]  # row > threshold  <=>  shape > threshold / mass
    shapes = _sorted_shapes(rows)[live]
    block = np.unique(sample, return_inverse=True)[1] if kind == "within" else np.zeros_like(sample)
    _, first, size = np.unique(block, return_index=True, return_counts=True)
    centred_mass = centre_within(mass, block)

    def r_with_shapes_of(order: np.ndarray) -> np.ndarray:
        count = np.zeros((len(order), len(mass)))
        count[:, live] = _count_above(shapes, order, level)
        count -= np.repeat(np.add.reduceat(count, first, axis=1) / size, size, axis=1)
        sums = np.zeros((len(order), 6))  # n, x, y, xx, yy, xy as in `moments`; x and y are 0: both are centred
        sums[:, 0], sums[:, 3] = len(mass), centred_mass @ centred_mass
        sums[:, 4], sums[:, 5] = np.square(count).sum(1), count @ centred_mass
        return pearson_from_sums(sums)

    r = float(r_with_shapes_of(np.arange(len(shapes))[None])[0])
    rng, null = np.random.default_rng(seed), []
    chunk = max(1, 1_000_000 // max(1, len(shapes)))
    for start in range(0, n_permutations, chunk):
        keys = sample[live] + rng.random((min(chunk, n_permutations - start), len(shapes)))
        null.append(r_with_shapes_of(np.argsort(keys, axis=1)))  # random order inside each group
    return Null.of(r, np.concatenate(null))


def _sorted_shapes(rows: list[np.ndarray]) -> np.ndarray:
    """Return the normalised rows of all samples, ascending, padded with zeros in front to 2^m - 1 patches."""
    width = 2 ** max(row.shape[-1] for row in rows).bit_length() - 1
    shapes = np.zeros((sum(len(row) for row in rows), width))
    start = 0
    for row in rows:
        mass = row.sum(-1, keepdims=True)
        shapes[start : start + len(row), width - row.shape[-1] :] = np.sort(
            row / np.where(mass > 0, mass, 1.0), axis=-1
        )
        start += len(row)
    return shapes


def _count_above(shapes: np.ndarray, order: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return how many entries of sorted row `order[..., i]` exceed level[i] > 0; bisects all rows at once."""
    width = shapes.shape[-1]
    flat, start = shapes.ravel(), order * width
    below = np.zeros_like(order)
    half = (width + 1) // 2
    while half:
        below += half * (flat[start + below + half - 1] <= level)
        half //= 2
    return width - below


def exchange_null(
    x: ArrayLike,
    y: ArrayLike,
    clusters: ArrayLike,
    alike: ArrayLike,
    *,
    n_permutations: int = 200,
    seed: int = 0,
) -> Null:
    """Ask whether r within samples is more than the difference between two kinds of step.

    The null exchanges x at random between the steps of a sample that are ``alike``: what r is left with is how the
    kinds differ. Where all steps are alike it is centred on about 0.

    Parameters
    ----------
    x, y : array [value]
    clusters : labels [value], the sample of each value
    alike : labels [value], the kind of step
    n_permutations : int, >= 1
    seed : int, >= 0

    Returns
    -------
    Null

    Raises
    ------
    ValueError
        If the input is empty, NaN or of unequal length, or `n_permutations` is below 1.
    """
    first, second = aligned("x and y", x, y)
    sample, kind = cluster_codes(clusters, len(first)), cluster_codes(alike, len(first))
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1; got {n_permutations}")
    group = sample * (kind.max() + 1) + kind
    first, second = centre_within(first, sample), centre_within(second, sample)
    home = np.argsort(group, kind="stable")
    keys = group + np.random.default_rng(seed).random((n_permutations, len(group)))
    exchanged = np.empty_like(keys)
    exchanged[:, home] = first[np.argsort(keys, axis=1)]  # each step gets one of its own group
    sums = np.zeros((1 + n_permutations, 6))  # as in `moments`; x and y are 0: both are centred, in any order
    sums[:, 0], sums[:, 3], sums[:, 4] = len(first), first @ first, second @ second
    sums[:, 5] = np.append(first @ second, exchanged @ second)
    r, *null = pearson_from_sums(sums)
    return Null.of(float(r), np.array(null))
