"""Input checks shared by the measures and the statistics: what was given, what was expected, what to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def attention_array(attention: ArrayLike, name: str = "attention", ndim: int = 1) -> np.ndarray:
    """Return attention as float64 [..., patch]; raise ValueError unless finite, >= 0, with >= `ndim` axes."""
    array = finite_array(attention, name)
    if array.ndim < ndim or array.shape[-1] == 0:
        raise ValueError(
            f"{name} needs at least {ndim} axes, the last one patches (1 or more); got shape {array.shape}"
        )
    if (array < 0).any():
        where, value = _first(array, array < 0)
        raise ValueError(f"{name} holds softmax weights, expected >= 0; got {value} at {where}. Logits need a softmax.")
    return array


def finite_array(values: ArrayLike, name: str) -> np.ndarray:
    """Return numbers as float64; raise ValueError at the first NaN or infinity."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers; got dtype {array.dtype}")
    array = array.astype(np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        where, value = _first(array, bad)
        raise ValueError(f"{name} must be finite; got {int(bad.sum())} NaN or infinite, the first {value} at {where}")
    return array


def bool_array(values: ArrayLike, name: str) -> np.ndarray:
    """Return a bool array [..., patch]; raise ValueError for any other dtype (indices are no mask)."""
    array = np.asarray(values)
    if array.dtype != bool or array.ndim < 1 or array.shape[-1] == 0:
        raise ValueError(
            f"{name} must be a bool mask [..., patch] with 1 or more patches; "
            f"got dtype {array.dtype}, shape {array.shape}"
        )
    return array


def same_patches(a: np.ndarray, b: np.ndarray, names: str) -> None:
    """Raise ValueError unless both arrays have the same number of patches and broadcastable leading axes."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"{names} must have the same patches on the last axis; got shapes {a.shape} and {b.shape}")
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"{names} must broadcast against each other; got shapes {a.shape} and {b.shape}") from None


def _first(array: np.ndarray, bad: np.ndarray) -> tuple[list[int], float]:
    where = tuple(np.argwhere(bad)[0])
    return [int(index) for index in where], float(array[where])
