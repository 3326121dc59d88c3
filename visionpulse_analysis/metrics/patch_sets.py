"""Sets of patches: top sets, the overlap between sets with its null, and whether a set holds an object.

Sets are bool ``[..., patch]``; other masks, or shapes that do not fit, raise ValueError. Everything
here is importable from `visionpulse_analysis.metrics.attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from visionpulse_analysis._util.checks import attention_array, bool_array, same_patches


def top_set(attention: ArrayLike, k: int | None = None, fraction: float | None = None) -> np.ndarray:
    """Mark the k patches with the largest weights; ties go to the lower patch index, so exactly k are marked.

    Parameters
    ----------
    attention : array [..., patch], >= 0
    k : int, 1 to n
    fraction : float in (0, 1]
        Instead of k: floor(fraction * n), at least 1 (VisionPulse's rule; the product is rounded to 9 digits
        first, so that 0.29 of 100 is 29).

    Returns
    -------
    bool [..., patch], k True in each row (also in a row without mass: its first k patches).

    Raises
    ------
    ValueError
        Unless exactly one of `k` and `fraction` is given, inside its range; or for NaN or negative weights.
    """
    weights = attention_array(attention)
    n = weights.shape[-1]
    if (k is None) == (fraction is None):
        raise ValueError(f"give exactly one of k and fraction; got k={k}, fraction={fraction}")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1]; got {fraction}")
        k = max(1, int(np.floor(round(fraction * n, 9))))
    if k is None or k != int(k) or not 1 <= k <= n:
        raise ValueError(f"k must be a whole number from 1 to the {n} patches; got {k}")
    best = np.argsort(-weights, axis=-1, kind="stable")[..., : int(k)]
    marked = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(marked, best, True, axis=-1)
    return marked


def jaccard(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Return |a and b| / |a or b| over the last axis of two sets.

    Parameters
    ----------
    a, b : bool [..., patch], broadcast against each other

    Returns
    -------
    float64 [...], 0 (disjoint) to 1 (equal); NaN where both sets are empty. Compare it with `jaccard_null`.

    Raises
    ------
    ValueError
        If a set is not bool, or the shapes do not fit.
    """
    first, second = bool_array(a, "a"), bool_array(b, "b")
    same_patches(first, second, "a and b")
    return _divide((first & second).sum(-1), (first | second).sum(-1))


class JaccardNull(NamedTuple):
    """Jaccard index of two independent random sets: its exact `mean`, and its quantiles `low` and `high`, 0 to 1."""

    mean: float
    low: float
    high: float


def jaccard_null(n: int, k_a: int, k_b: int, confidence: float = 0.95) -> JaccardNull:
    """Return the exact Jaccard null of random sets of k_a and k_b out of n patches (hypergeometric overlap).

    Parameters
    ----------
    n : int, number of patches
    k_a, k_b : int, sizes of the two sets, 0 to n, not both 0
    confidence : float in (0, 1)

    Returns
    -------
    JaccardNull; `low` and `high` are quantiles of one index at (1 -+ confidence) / 2, not limits of a mean over steps.

    Raises
    ------
    ValueError
        Unless 0 <= k_a, k_b <= n, at least one of them positive, and confidence in (0, 1).
    """
    if not (0 <= k_a <= n and 0 <= k_b <= n and k_a + k_b > 0):
        raise ValueError(f"set sizes must be 0 to n and not both 0; got n={n}, k_a={k_a}, k_b={k_b}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}")
    overlap = np.arange(max(0, k_a + k_b - n), min(k_a, k_b) + 1)
    index = overlap / (k_a + k_b - overlap)
    from scipy.stats import hypergeom  # slow to import, and not needed to read a trace

    low, high = hypergeom.ppf([(1 - confidence) / 2, (1 + confidence) / 2], n, k_a, k_b)
    return JaccardNull(
        float(hypergeom.pmf(overlap, n, k_a, k_b) @ index), low / (k_a + k_b - low), high / (k_a + k_b - high)
    )


def coverage(attention: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """Return the share of each row's visual mass that lies inside a set.

    Parameters
    ----------
    attention : array [..., patch], >= 0
    mask : bool [..., patch], broadcast against attention

    Returns
    -------
    float64 [...], 0 to 1; NaN for a row without mass. On average a random set of k patches covers k / n.
    """
    weights, inside = attention_array(attention), bool_array(mask, "mask")
    same_patches(weights, inside, "attention and mask")
    return np.minimum(_divide(np.where(inside, weights, 0.0).sum(-1), weights.sum(-1)), 1.0)


def consecutive_overlap(sets: ArrayLike) -> np.ndarray:
    """Return the Jaccard index of each step's set with the next.

    Parameters
    ----------
    sets : bool [step, ..., patch]

    Returns
    -------
    float64 [step - 1, ...], 0 to 1; NaN where both sets are empty.

    Raises
    ------
    ValueError
        If the sets are not bool or have no step.
    """
    steps = _step_sets(sets)
    return jaccard(steps[:-1], steps[1:])


def overlap_with_first(sets: ArrayLike) -> np.ndarray:
    """Return the Jaccard index of each step's set with that of step 0, the prefill.

    Parameters
    ----------
    sets : bool [step, ..., patch]

    Returns
    -------
    float64 [step, ...], 0 to 1, the first 1; NaN where both sets are empty.
    """
    steps = _step_sets(sets)
    return jaccard(steps, steps[:1])


def overlap_by_lag(sets: ArrayLike, max_lag: int) -> np.ndarray:
    """Return the mean Jaccard index between steps t and t + lag.

    Parameters
    ----------
    sets : bool [step, ..., patch]
    max_lag : int, >= 0

    Returns
    -------
    float64 [lag, ...] for lag = 0 (always 1) to max_lag; NaN where the trace has no pair so far apart.

    Raises
    ------
    ValueError
        As `consecutive_overlap`; or `max_lag` is negative.
    """
    steps = _step_sets(sets)
    if max_lag < 0:
        raise ValueError(f"max_lag must be >= 0; got {max_lag}")
    result = np.full((max_lag + 1, *steps.shape[1:-1]), np.nan)
    for lag in range(min(max_lag + 1, len(steps))):
        result[lag] = jaccard(steps[: len(steps) - lag], steps[lag:]).mean(0)
    return result


class Relevance(NamedTuple):
    """Does attention, or a kept set, fall on the object? Float64 [...], 0 to 1, NaN without object or mass.

    Attributes
    ----------
    hit : 1 if the largest weight (ties: lower index), or any member of the set, is on the object; else 0
    share : of the mass (attention), or of the members (set), on the object
    chance_hit : `hit` of a random patch, |object| / n, or of a random set of the same size (hypergeometric)
    chance_share : `share` of uniform attention or of a random set, |object| / n
    """

    hit: np.ndarray
    share: np.ndarray
    chance_hit: np.ndarray
    chance_share: np.ndarray


def relevance_hit(attention_or_set: ArrayLike, object_patches: ArrayLike) -> Relevance:
    """Measure whether attention (numbers) or a set (bool) falls on an object's patches, beside chance.

    Parameters
    ----------
    attention_or_set : array [..., patch], >= 0, or bool [..., patch] such as `top_set` or `Trace.kept`
    object_patches : bool [..., patch], broadcast; rows without an object give NaN

    Returns
    -------
    Relevance

    Raises
    ------
    ValueError
        For NaN or negative attention, a mask that is not bool, or shapes that do not fit.
    """
    is_set = np.asarray(attention_or_set).dtype == bool
    weights, target = attention_array(attention_or_set), bool_array(object_patches, "object_patches")
    same_patches(weights, target, "attention_or_set and object_patches")
    weights, target = np.broadcast_arrays(weights, target)
    n, size = weights.shape[-1], target.sum(-1)
    share, chance_share = coverage(weights, target), size / n
    if is_set:
        hit = (weights * target).any(-1)
        from scipy.stats import hypergeom

        chance_hit = 1.0 - hypergeom.pmf(0, n, size, weights.sum(-1).astype(int))
    else:
        hit = np.take_along_axis(target, weights.argmax(-1)[..., None], -1)[..., 0]
        chance_hit = chance_share
    defined = (size > 0) & (weights.sum(-1) > 0)
    return Relevance(*(np.where(defined, value, np.nan) for value in (hit, share, chance_hit, chance_share)))


def _step_sets(sets: ArrayLike) -> np.ndarray:
    steps = bool_array(sets, "sets")
    if steps.ndim < 2 or len(steps) == 0:
        raise ValueError(f"sets must be [step, ..., patch] with 1 or more steps; got shape {steps.shape}")
    return steps


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
