"""How alike two layers look, and how far a next-token distribution moves; importable from `measures` too."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from visionpulse_analysis._util.checks import attention_array


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
    total = logsumexp(array, axis=-1, keepdims=True)
    if not (np.abs(total) <= 1e-2).all():
        worst = total[~(np.abs(total) <= 1e-2)][0]
        raise ValueError(f"{name} must be log-probabilities (log-sum-exp 0); got a row with {worst}. Use log_softmax.")
    return array - total
