"""Arithmetic on clustered values, shared by the bootstrap and the nulls."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from visionpulse_analysis._util.checks import finite_array

Kind = Literal["pooled", "within"]


def one_choice(value: str, allowed: tuple[str, ...], name: str) -> None:
    """Raise ValueError unless the value is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def aligned(name: str, *arrays: ArrayLike) -> list[np.ndarray]:
    """Return 1-D float64 arrays; raise ValueError if one is empty, not finite, or of another length."""
    columns = [finite_array(array, name) for array in arrays]
    shapes = [column.shape for column in columns]
    if any(column.ndim != 1 or column.shape != columns[0].shape or column.size == 0 for column in columns):
        raise ValueError(f"{name} must be 1-D, not empty and of one length; got shapes {shapes}")
    return columns


def cluster_codes(clusters: ArrayLike, n_values: int) -> np.ndarray:
    """Return the cluster of each value as codes 0 to n_clusters - 1, in the sorted order of the labels."""
    labels = np.asarray(clusters)
    if labels.shape != (n_values,):
        raise ValueError(f"clusters must hold one label per value, shape ({n_values},); got shape {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError("clusters holds NaN labels; name the sample of every value")
    return np.unique(labels, return_inverse=True)[1]


def cluster_sums(codes: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Return the sums per cluster, float64 [cluster, column]."""
    return np.stack([np.bincount(codes, weights=column) for column in columns], -1)


def centre_within(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Subtract each cluster's mean; what is left of a constant after rounding becomes an exact 0."""
    means = np.bincount(codes, weights=values) / np.bincount(codes)
    centred = values - means[codes]
    centred[np.abs(centred) <= 1e-12 * np.abs(values).max()] = 0.0
    return centred


def moments(codes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the sums n, x, y, xx, yy, xy, float64 [cluster, 6]; centre x and y first (cancellation)."""
    return cluster_sums(codes, np.ones_like(x), x, y, x * x, y * y, x * y)


def pearson_from_sums(sums: np.ndarray) -> np.ndarray:
    """Return Pearson's r [...] from sums [..., 6]; NaN where x or y is constant up to rounding."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    var_x, var_y = xx - x * x / n, yy - y * y / n
    varies = (var_x > 1e-12 * xx) & (var_y > 1e-12 * yy)
    scale = np.sqrt(np.where(varies, var_x, 1.0)) * np.sqrt(np.where(varies, var_y, 1.0))
    return np.where(varies, np.clip((xy - x * y / n) / scale, -1.0, 1.0), np.nan)
