"""Checks of what the draw functions are given: one ValueError that says what came and what was expected."""

from collections.abc import Sequence

import numpy as np


def check_image(image: np.ndarray) -> np.ndarray:
    """Return `image` if it is a uint8 array [row_px, col_px, 3], else raise ValueError."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"image has shape {image.shape} and dtype {image.dtype}, expected uint8 [row_px, col_px, 3]; "
            "convert with np.asarray(pil_image.convert('RGB'))"
        )
    return image


def check_map(values: np.ndarray, name: str = "heat_map") -> np.ndarray:
    """Return `values` as a float64 copy [row, col] (NaN = no patch), else raise ValueError."""
    values = _numbers(values, name)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"{name} has shape {values.shape}, expected [row, col] with at least one patch; "
            "one value per patch becomes a map with grid.to_map(values)"
        )
    if np.isinf(values).any() or np.isnan(values).all():
        raise ValueError(f"{name} has infinite values or nothing but NaN; NaN marks the places without a patch")
    return values


def check_vector(
    values: Sequence[float] | np.ndarray,
    name: str,
    *,
    length: int | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> np.ndarray:
    """Return `values` as a float64 copy [n], finite and in [low, high], else raise ValueError."""
    values = _numbers(values, name)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}, expected a vector with at least one value")
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} values, expected {length}: one for each item drawn")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are NaN or infinite; leave those items out")
    if values.min() < low or values.max() > high:
        raise ValueError(f"{name} runs from {values.min():.4g} to {values.max():.4g}, expected {low:g} to {high:g}")
    return values


def check_limits(vmin: float, vmax: float) -> None:
    """Raise ValueError unless vmin < vmax and both are finite."""
    if not (np.isfinite(vmin) and np.isfinite(vmax) and vmin < vmax):
        raise ValueError(f"scale limits vmin={vmin!r}, vmax={vmax!r}: expected finite vmin < vmax, see scale_limits")


def check_count(items: Sequence[object], name: str, expected: int) -> None:
    """Raise ValueError unless there are as many items as expected; a string is not a list of items."""
    if isinstance(items, str) or len(items) != expected:
        what = f"the string {items!r}" if isinstance(items, str) else f"{len(items)} items"
        raise ValueError(f"{name} is {what}, expected a list of {expected}")


def check_bracket(estimate: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Raise ValueError unless low <= estimate <= high everywhere: these are ends, not half-widths."""
    wrong = np.flatnonzero(~((low <= estimate) & (estimate <= high)))
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"item {i}: estimate {estimate[i]:.4g} is outside its interval [{low[i]:.4g}, {high[i]:.4g}]; "
            "low and high are the ends of the interval, not distances from the estimate"
        )


def _numbers(values: object, name: str) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
