"""From values to colours: limits, colours with opacity, the colour bar."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from .style import HEAT_CMAP, style


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


ON_PICTURE = "shown on dark to light ground"
ATTENTION_UNIT = "attention (share of the step's total)"


def scale_limits(maps: Iterable[np.ndarray], scale: str | float) -> list[tuple[float, float]]:
    """Return the colour limits of each panel: one scale for all, or each step's own.

    Parameters
    ----------
    maps : iterable of float [row, col]
        Shares (never negative), NaN where there is no patch.
    scale : {"absolute", "per_step"} or float
        "absolute": from 0 to the largest value of all maps, so panels can be compared with each other.
        "per_step": from 0 to the largest value of each map, so the shape of a weak map can be seen as well.
        A number: from 0 to it, so that panels can be compared with those of another strip.

    Returns
    -------
    list of (vmin, vmax)
        One pair per map. Where the largest value is 0 the pair is (0, 1).

    Raises
    ------
    ValueError
        On an unknown scale, no maps, or negative values.
    """
    maps = [check_map(values) for values in maps]
    fixed = None if isinstance(scale, str) else float(scale)
    if scale not in ("absolute", "per_step") and not (fixed is not None and 0 < fixed < np.inf):
        raise ValueError(f"scale is {scale!r}, expected 'absolute', 'per_step' or a positive number")
    if not maps:
        raise ValueError("no maps: scale_limits needs at least one [row, col] array")
    if any(np.nanmin(values) < 0 for values in maps):
        raise ValueError("a map has negative values, so it is no share of attention; choose vmin and vmax yourself")
    largest = [float(np.nanmax(values)) if fixed is None else fixed for values in maps]
    if scale == "absolute":
        largest = [max(largest)] * len(maps)
    return [(0.0, value or 1.0) for value in largest]


@style()
def draw_colour_bar(
    axes: Axes | Sequence[Axes] | np.ndarray,
    *,
    vmin: float,
    vmax: float,
    cmap: str = HEAT_CMAP,
    alpha: tuple[float, float] = (1.0, 1.0),
    opacity: Callable[[np.ndarray], np.ndarray] | None = None,
    label: str = ATTENTION_UNIT,
    location: str = "right",
    ground: np.ndarray | Sequence[np.ndarray] | None = None,
) -> Colorbar:
    """Draw the colour bar of one Axes or of several that share it; give it what their draw function got.

    Parameters
    ----------
    axes : Axes, or several
        The bar takes its room from them.
    vmin, vmax : float
    cmap : str
    alpha : (float, float)
        Opacity at both ends, on white: for overlays the same as theirs.
    opacity : callable, optional
        Values float [value] to opacities float [value], 0 to 1, for overlays whose opacity is not linear in the value.
    label : str
        What is drawn, with its unit.
    location : {"right", "bottom"}
        "bottom" for rows of panels that are lower than the label is long.
    ground : uint8 [row_px, col_px, 3], or several, optional
        What a translucent overlay lies on: across the bar every value is shown on the pictures' colours, from the dark
        to the light ones, because it looks different on each. By default on white.

    Returns
    -------
    Colorbar

    Raises
    ------
    ValueError
        On limits out of order or another location.
    """
    if location not in ("right", "bottom"):
        raise ValueError(f"location is {location!r}, expected 'right' or 'bottom'")
    values = np.linspace(vmin, vmax, 256)
    shades = colours(values[None], vmin, vmax, alpha, cmap)[0]
    if opacity is not None:
        shades[:, 3] *= opacity(values)
    # Blended here, because a bar of translucent cells shows seams.
    grounds = np.ones((1, 3)) if ground is None else _grounds(ground)
    blended = shades[None, :, :3] * shades[None, :, 3:] + grounds[:, None] * (1 - shades[None, :, 3:])
    flat = blended[-1]
    several = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).ravel())
    mappable = ScalarMappable(Normalize(vmin, vmax), ListedColormap(flat))
    size = {"right": {"aspect": 18, "pad": 0.02}, "bottom": {"aspect": 32, "pad": 0.04, "shrink": 0.5}}[location]
    bar = several[0].figure.colorbar(mappable, ax=several, fraction=0.05, location=location, **size)
    inches = several[0].figure.bbox.width / several[0].figure.dpi * 0.5 if location == "bottom" else np.inf
    bar.locator = MaxNLocator(int(np.clip(inches / 0.4, 2, 5)))  # a number with its gap is 0.4 inches wide
    bar.update_ticks()
    bar.set_label(label, fontsize=7 if location == "bottom" else 8)
    if ground is not None:
        # The bar itself can only be one colour per value; the picture over it has all of them.
        place: dict[str, Any] = (
            {"extent": (vmin, vmax, 0, 1), "origin": "lower"}
            if location == "bottom"
            else {"extent": (0, 1, vmin, vmax)}
        )
        across = blended if location == "bottom" else blended.transpose(1, 0, 2)[::-1]
        bar.ax.imshow(across, aspect="auto", interpolation="nearest", zorder=0.5, **place)
        bar.set_label(f"{label}\n{ON_PICTURE}", fontsize=7 if location == "bottom" else 8)
    bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return bar


def _grounds(pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Mean colours of sixteen parts of the pictures' pixels, from dark to light: float [part, 3], 0..1."""
    several = [pictures] if isinstance(pictures, np.ndarray) and pictures.ndim == 3 else list(pictures)
    pixels = np.concatenate([np.asarray(one).reshape(-1, 3)[:: max(1, one.size // 30_000)] for one in several]) / 255
    by_light = pixels[np.argsort(pixels @ [0.2126, 0.7152, 0.0722], kind="stable")]
    return np.array([part.mean(axis=0) for part in np.array_split(by_light, min(16, len(by_light)))])


def colours(values: np.ndarray, vmin: float, vmax: float, alpha: tuple[float, float], cmap: str) -> np.ndarray:
    """Return float RGBA [..., 4]: the colour map, with an opacity that grows with the value; NaN is clear.

    Raises ValueError for limits out of order, opacities outside 0 to 1, or an unknown colour map.
    """
    check_limits(vmin, vmax)
    low, high = alpha
    if not (0 <= low <= 1 and 0 <= high <= 1):
        raise ValueError(f"alpha is {alpha!r}, expected two opacities from 0 to 1: at vmin and at vmax")
    if cmap not in matplotlib.colormaps:
        raise ValueError(f"cmap is {cmap!r}, not a colour map of matplotlib; try 'inferno' or 'cividis'")
    share = np.clip((values - vmin) / (vmax - vmin), 0, 1)
    rgba = matplotlib.colormaps[cmap](np.nan_to_num(share))
    rgba[..., 3] = np.where(np.isnan(share), 0, low + (high - low) * np.nan_to_num(share))
    return rgba
