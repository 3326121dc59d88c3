"""Measures of visual attention: arrays in, arrays out.

Attention arrays are ``[..., patch]``: the softmax weights of one query on the image patches, not
renormalised over the image, any leading axes. Everything is computed in float64, and weights that
are NaN, infinite or negative raise ValueError. Rows without any mass have no shape: scale-free measures are NaN there.
Sets of patches live in `patch_sets` and are importable from here. The last functions compare: how alike two layers
look, and how far a next-token distribution moves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from visionpulse_analysis._util.checks import attention_array, finite_array
from visionpulse_analysis.metrics.patch_sets import (
    JaccardNull,
    Relevance,
    consecutive_overlap,
    coverage,
    jaccard,
    jaccard_null,
    overlap_by_lag,
    overlap_with_first,
    relevance_hit,
    top_set,
)

__all__ = [
    "PAPER_THRESHOLDS",
    "UNIFORM_MULTIPLES",
    "JaccardNull",
    "Relevance",
    "active_count",
    "attention_mass",
    "centre_drift",
    "centre_of_mass",
    "consecutive_overlap",
    "coverage",
    "effective_count",
    "entropy_bits",
    "jaccard",
    "jaccard_null",
    "kl_divergence",
    "layer_cosines",
    "layer_similarity",
    "mean_over_steps",
    "normalise",
    "overlap_by_lag",
    "overlap_with_first",
    "participation_ratio",
    "patches_for_share",
    "relevance_hit",
    "top_set",
]

PAPER_THRESHOLDS = (0.0005, 0.001, 0.0015, 0.002)
"""Thresholds of the active count in VisionPulse (arXiv 2605.31457), chosen for >= 1280 visual tokens."""

UNIFORM_MULTIPLES = (0.5, 1.0, 2.0, 4.0)
"""Thresholds as multiples of the uniform level 1/n, for images with fewer patches; ours, not the paper's."""


def attention_mass(attention: ArrayLike) -> np.ndarray:
    """Sum the attention over the patches: how much of the query goes to the image.

    Parameters
    ----------
    attention : array [..., patch], >= 0

    Returns
    -------
    float64 [...], 0 (blind) to 1 (all on the image) for softmax rows. VisionPulse's "visual attention mass".

    Raises
    ------
    ValueError
        If a weight is NaN, infinite or negative.
    """
    return attention_array(attention).sum(-1)


def active_count(attention: ArrayLike, threshold: ArrayLike, *, relative: bool = False) -> np.ndarray:
    """Count the patches whose weight exceeds a threshold (strictly): VisionPulse's "active token count".

    The count grows with the mass even if the shape never changes; see `statistics.shape_permutation_null`.

    Parameters
    ----------
    attention : array [..., patch], >= 0
    threshold : float, or floats [threshold], >= 0
        In units of attention, as `PAPER_THRESHOLDS`.
    relative : bool
        Thresholds are multiples of the uniform level 1/n, as `UNIFORM_MULTIPLES`.

    Returns
    -------
    int64 [...], or [..., threshold] if several thresholds are given; 0 to n.

    Raises
    ------
    ValueError
        If a weight or a threshold is NaN, infinite or negative, or the thresholds have more than one axis.
    """
    weights = attention_array(attention)
    levels = finite_array(threshold, "threshold")
    if levels.ndim > 1 or (levels < 0).any():
        raise ValueError(f"threshold must be one number or a list of numbers >= 0; got {threshold}")
    if relative:
        levels = levels / weights.shape[-1]
    counts = [(weights > level).sum(-1) for level in np.atleast_1d(levels)]
    return np.stack(counts, -1) if levels.ndim else counts[0]


def normalise(attention: ArrayLike) -> np.ndarray:
    """Divide each row by its mass: the shape of the attention inside the image.

    Parameters
    ----------
    attention : array [..., patch], >= 0

    Returns
    -------
    float64 [..., patch], each row sums to 1; a row without mass has no shape and becomes NaN.

    Raises
    ------
    ValueError
        If a weight is NaN, infinite or negative.
    """
    weights = attention_array(attention)
    mass = weights.sum(-1, keepdims=True)
    return np.divide(weights, mass, out=np.full_like(weights, np.nan), where=mass > 0)


def participation_ratio(attention: ArrayLike) -> np.ndarray:
    """Return 1 / sum p^2 of the normalised row p: the number of patches of an equally concentrated even split.

    Scale-free: a multiple of the row gives the same value. Dominated by the largest weights.

    Parameters
    ----------
    attention : array [..., patch], >= 0

    Returns
    -------
    float64 [...], 1 (one patch) to n (uniform); NaN for a row without mass.
    """
    return 1.0 / np.square(normalise(attention)).sum(-1)


def entropy_bits(attention: ArrayLike) -> np.ndarray:
    """Return the Shannon entropy of the normalised row in bits; scale-free.

    Parameters
    ----------
    attention : array [..., patch], >= 0

    Returns
    -------
    float64 [...], 0 (one patch) to log2 n (uniform); NaN for a row without mass.
    """
    shape = normalise(attention)
    from scipy.special import xlogy  # half a second, for a trace that is only read

    return np.maximum(-xlogy(shape, shape).sum(-1) / np.log(2), 0.0)


def effective_count(attention: ArrayLike) -> np.ndarray:
    """Return 2 ** `entropy_bits`: the effective number of patches, at least the `participation_ratio`.

    Parameters
    ----------
    attention : array [..., patch], >= 0

    Returns
    -------
    float64 [...], 1 (one patch) to n (uniform); NaN for a row without mass. Sensitive to many small weights.
    """
    return np.exp2(entropy_bits(attention))


def patches_for_share(attention: ArrayLike, share: float = 0.9) -> np.ndarray:
    """Return the smallest number of patches that together hold a share of the row's mass; scale-free.

    Parameters
    ----------
    attention : array [..., patch], >= 0
    share : float in (0, 1], reached up to a relative rounding of 1e-12

    Returns
    -------
    float64 [...], whole numbers from 1 to n (uniform: ceil(share * n)); NaN for a row without mass.

    Raises
    ------
    ValueError
        If a weight is NaN, infinite or negative, or the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}")
    held = np.cumsum(-np.sort(-normalise(attention), axis=-1), axis=-1)
    target = share * held[..., -1:] * (1 - 1e-12)
    count = 1.0 + (held < target).sum(-1)
    return np.where(np.isnan(held[..., -1]), np.nan, count)


def centre_of_mass(attention: ArrayLike, row: ArrayLike, col: ArrayLike) -> np.ndarray:
    """Return the attention-weighted mean (row, col), in patches. Use the patches of one image only.

    Parameters
    ----------
    attention : array [..., patch], >= 0
    row, col : array [patch]
        Grid coordinates (`PatchGrid.row`, `PatchGrid.col`).

    Returns
    -------
    float64 [..., 2] = row, col, inside the range of the given coordinates; NaN for a row without mass.

    Raises
    ------
    ValueError
        If a weight is NaN, infinite or negative, or `row` and `col` are not one finite number per patch.
    """
    shape = normalise(attention)
    place = np.stack([finite_array(row, "row"), finite_array(col, "col")], -1)
    if place.shape != (shape.shape[-1], 2):
        raise ValueError(f"row and col must be [patch] with {shape.shape[-1]} patches; got {place.shape[:-1]}")
    return shape @ place


def centre_drift(attention: ArrayLike, row: ArrayLike, col: ArrayLike) -> np.ndarray:
    """Return how far the centre of mass moves between consecutive steps, in patches (Euclidean).

    Parameters
    ----------
    attention : array [step, ..., patch], >= 0
    row, col : array [patch], grid coordinates

    Returns
    -------
    float64 [step - 1, ...], >= 0; NaN next to a row without mass.

    Raises
    ------
    ValueError
        As `centre_of_mass`; or there is no step axis.
    """
    weights = attention_array(attention, ndim=2)
    return np.linalg.norm(np.diff(centre_of_mass(weights, row, col), axis=0), axis=-1)


def layer_similarity(attention: ArrayLike) -> np.ndarray:
    """Return the cosine between the layers' attention vectors, averaged over the steps of one sample.

    VisionPulse's definition (authors' code, `similarity_by_step`): average over steps first, then over
    samples. Of a trace, whichever form it keeps, `Trace.layer_similarity` gives it.

    Parameters
    ----------
    attention : array [step, layer, patch], >= 0, head mean, of two layers or more

    Returns
    -------
    float64 [layer, layer], 0 to 1, symmetric. Steps at which a layer has no mass are left out of its
    average; NaN if none is left.

    Raises
    ------
    ValueError
        If a weight is NaN, infinite or negative, or the axes are others, without a step or of a single layer.
    """
    return mean_over_steps(layer_cosines(attention))


def layer_cosines(attention: ArrayLike) -> np.ndarray:
    """Return the cosine between the layers' attention vectors at each step.

    Parameters
    ----------
    attention : array [step, layer, patch], >= 0, head mean, of two layers or more

    Returns
    -------
    float64 [step, layer, layer], 0 to 1, symmetric; NaN for a layer without mass.

    Raises
    ------
    ValueError
        As `layer_similarity`.
    """
    weights = attention_array(attention, ndim=3)
    if weights.ndim != 3 or weights.shape[0] == 0 or weights.shape[1] < 2:
        raise ValueError(
            "attention must be [step, layer, patch] with 1 or more steps and 2 or more layers to compare; "
            f"got shape {weights.shape} (of an imported trace, trace.layer_similarity() has all layers)"
        )
    largest = weights.max(-1, keepdims=True)  # divided out first: squares of a tiny row underflow
    scaled = np.divide(weights, largest, out=np.full_like(weights, np.nan), where=largest > 0)
    unit = scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)
    return np.clip(np.einsum("slp,smp->slm", unit, unit), 0.0, 1.0)


def mean_over_steps(cosines: np.ndarray) -> np.ndarray:
    """Average cosines over the steps at which they are defined.

    Parameters
    ----------
    cosines : float [step, layer, layer], NaN where a layer has no mass

    Returns
    -------
    float64 [layer, layer], NaN where no step is defined
    """
    defined = ~np.isnan(cosines)
    total, count = np.where(defined, cosines, 0.0).sum(0, dtype=np.float64), defined.sum(0)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def kl_divergence(logp: ArrayLike, logq: ArrayLike) -> np.ndarray:
    """Return KL(p || q) in nats between next-token distributions given as log-probabilities.

    Parameters
    ----------
    logp, logq : array [..., token], <= 0, -inf allowed; the exponentials of each row sum to 1 within 1 %
        Rows are renormalised in float64, so half-precision log-softmax output is fine.

    Returns
    -------
    float64 [...], >= 0; 0 if equal, inf if q excludes a token that p allows.

    Raises
    ------
    ValueError
        If a row is NaN or not log-probabilities (raw logits), or the two do not have the same tokens.
    """
    log_p, log_q = _log_probabilities(logp, "logp"), _log_probabilities(logq, "logq")
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(f"logp and logq must have the same tokens; got shapes {log_p.shape} and {log_q.shape}")
    p = np.exp(log_p)
    ratio = np.subtract(log_p, log_q, out=np.zeros(np.broadcast_shapes(log_p.shape, log_q.shape)), where=p > 0)
    return np.maximum((p * ratio).sum(-1), 0.0)


def _log_probabilities(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] == 0:
        raise ValueError(f"{name} must be [..., token] with 1 or more tokens; got shape {array.shape}")
    from scipy.special import logsumexp

    total = logsumexp(array, axis=-1, keepdims=True)
    if not (np.abs(total) <= 1e-2).all():
        worst = total[~(np.abs(total) <= 1e-2)][0]
        raise ValueError(f"{name} must be log-probabilities (log-sum-exp 0); got a row with {worst}. Use log_softmax.")
    return array - total
