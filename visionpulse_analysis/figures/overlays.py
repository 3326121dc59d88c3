"""Values per patch drawn on the image they belong to.

Every function puts the image into the same coordinates, in pixels: x from 0 (left edge) to its width, y from
0 (top edge) to its height. So the boxes of a ``PatchGrid`` can be drawn as they are.
"""

from collections.abc import Sequence

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from .page import PaperFigure
from .scales import ATTENTION_UNIT, check_count, check_image, check_map, colours, draw_colour_bar, scale_limits
from .style import DOUBLE, GREY, HEAT_CMAP, SINGLE, style

OPACITY = (0.5, 0.65)  # at vmin and at vmax: dims the image where nobody looks, never hides it


@style()
def draw_overlay(
    ax: Axes,
    image: np.ndarray,
    heat_map: np.ndarray,
    *,
    vmin: float,
    vmax: float,
    alpha: tuple[float, float] = OPACITY,
    cmap: str = HEAT_CMAP,
) -> Axes:
    """Draw a value per patch over the image, patch by patch, without smoothing.

    The lowest values darken the image, the highest shine; the image stays visible under both.

    Parameters
    ----------
    ax : Axes
    image : uint8 [row_px, col_px, 3]
    heat_map : float [row, col]
        One value per patch, NaN where there is no patch (the bare image shows). The grid covers the whole
        image.
    vmin, vmax : float
        Values drawn in the first and last colour; values beyond them take the end colour. See `scale_limits`.
    alpha : (float, float)
        Opacity at `vmin` and at `vmax`, each from 0 to 1.
    cmap : str
        Name of a matplotlib colour map.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape or dtype, limits out of order, or an opacity outside 0 to 1.
    """
    return _draw_on_image(ax, image, colours(check_map(heat_map), vmin, vmax, alpha, cmap))


@style()
def draw_map_grid(
    ax: Axes,
    maps: np.ndarray,
    layers: Sequence[int],
    heads: Sequence[int | str],
    *,
    signed: bool = False,
    cmap: str = HEAT_CMAP,
) -> Axes:
    """Draw the maps of all layers and heads at one step side by side, small, each on its own scale.

    Of a head that gives the image little attention one sees where it goes, too; how much it is, the maps do not say.

    Parameters
    ----------
    ax : Axes
    maps : float [layer, head, row, col]
        NaN where there is no patch.
    layers : sequence of int [layer]
    heads : sequence of int or str [head]
        One, such as "mean", where heads were averaged.
    signed : bool
        Values have a sign: each map from minus its largest absolute value to that, else from 0 to its largest value.
    cmap : str
        Name of a matplotlib colour map.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape, infinite values, a wrong number of names, or values below 0 that are not said to be signed.
    """
    maps = np.array(maps, dtype=float)
    if maps.ndim != 4 or not maps.size or np.isinf(maps).any():
        raise ValueError(f"maps have shape {maps.shape}, expected finite numbers [layer, head, row, col] or NaN")
    check_count(layers, "layers", len(maps))
    check_count(heads, "heads", maps.shape[1])
    if not signed and (maps < 0).any():
        raise ValueError("maps hold values below 0; say signed=True where they may have a sign")
    most = np.nanmax(np.abs(maps), axis=(2, 3), keepdims=True, initial=0)
    shares = maps / np.where(most > 0, most, 1)
    _, _, rows, cols = maps.shape
    gap = max(1, round(max(rows, cols) / 10))
    padded = np.pad(shares, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    mosaic = padded.transpose(0, 2, 1, 3).reshape(len(maps) * (rows + gap), -1)[:-gap, :-gap]
    low = -1.0 if signed else 0.0
    ax.imshow(mosaic, vmin=low, vmax=1, cmap=cmap, interpolation="nearest", rasterized=True)
    for axis, names, size in ((ax.xaxis, heads, cols), (ax.yaxis, layers, rows)):
        every = -(-len(names) // 16)  # of many only every n-th is named
        axis.set_ticks(((size + gap) * np.arange(len(names)) + (size - 1) / 2)[::every], list(map(str, names))[::every])
        axis.set_tick_params(length=0)
    ax.set(xlabel="head", ylabel="layer")
    ax.spines[:].set_visible(False)
    draw_colour_bar(ax, vmin=low, vmax=1, cmap=cmap, label="share of each map's\nlargest value")
    return ax


@style()
def draw_blackout(ax: Axes, image: np.ndarray, heat_map: np.ndarray, percentile: float) -> Axes:
    """Black out every patch whose value is at or below a percentile of the map.

    The activation picture of VisionPulse (arXiv 2605.31457), there with the percentiles 50 and 90: what is shown is
    above the percentile, interpolated linearly, so that of equal values none stands out and none is shown.

    Parameters
    ----------
    ax : Axes
    image : uint8 [row_px, col_px, 3]
    heat_map : float [row, col]
        NaN where there is no patch; those places are blacked out as well.
    percentile : float
        From 0 (nothing is blacked out) to 100 (everything is), over the patches of this map.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape or dtype or a percentile outside 0 to 100.
    """
    heat_map = check_map(heat_map)
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile!r}, expected a number from 0 to 100")
    # A value is above the interpolated percentile exactly if it is above the value of the map at or below that: so no
    # rounding can move a patch across the threshold.
    threshold = np.nanpercentile(heat_map, percentile, method="lower") if percentile > 0 else -np.inf
    black = np.zeros((*heat_map.shape, 4))
    black[..., 3] = ~(heat_map > threshold)  # written so that NaN is black
    return _draw_on_image(ax, image, black)


@style()
def draw_kept(ax: Axes, image: np.ndarray, kept_map: np.ndarray) -> Axes:
    """Show the patches a pruner kept and outline them; dim the dropped ones.

    Parameters
    ----------
    ax : Axes
    image : uint8 [row_px, col_px, 3]
    kept_map : bool, or float with 0, 1 and NaN (no patch), [row, col]
        True = visible to the model.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape or dtype or values other than 0, 1 and NaN.
    """
    kept = check_map(kept_map, "kept_map")
    if not np.isin(kept[~np.isnan(kept)], (0, 1)).all():
        raise ValueError("kept_map has values other than True, False and NaN; threshold it first")
    dim = np.zeros((*kept.shape, 4))
    dim[..., :3] = 0.15
    dim[..., 3] = np.where(kept == 0, 0.72, 0)
    _draw_on_image(ax, image, dim)
    _draw_edges(ax, kept == 1)
    return ax


@style()
def draw_clusters(ax: Axes, image: np.ndarray, owner_map: np.ndarray) -> Axes:
    """Outline groups of patches, each by its number.

    Parameters
    ----------
    ax : Axes
    image : uint8 [row_px, col_px, 3]
    owner_map : int, or float with NaN (no patch), [row, col]
        0 and above; patches of one number are one group, wherever they lie.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape or dtype.
    """
    owners = check_map(owner_map, "owner_map")
    _draw_on_image(ax, image, np.zeros((*owners.shape, 4)))
    _draw_edges(ax, np.nan_to_num(owners, nan=-1.0) + 1)
    return ax


def _draw_edges(ax: Axes, groups: np.ndarray) -> None:
    """Draw a line wherever patches of different groups [row, col] meet, and where one but 0 meets the rim."""
    height, width = max(ax.get_ylim()) / groups.shape[0], max(ax.get_xlim()) / groups.shape[1]
    inside = np.pad(groups, 1)
    edges = [
        ((col * width, row * height), (col * width, (row + 1) * height))
        for row, col in np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1])
    ] + [
        ((col * width, row * height), ((col + 1) * width, row * height))
        for row, col in np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1])
    ]
    ax.add_collection(LineCollection(edges, colors="#ffd21f", linewidths=0.9, capstyle="projecting"), autolim=False)


@style()
def draw_boxes(ax: Axes, boxes: np.ndarray, labels: Sequence[str] | None = None, *, colour: str = "white") -> Axes:
    """Outline rectangles on an image that is already drawn, for example the cells of ground-truth objects.

    Parameters
    ----------
    ax : Axes
        With an image drawn by this module.
    boxes : float [n, 4]
        Left, top, right, bottom in pixels of the image. ``n`` may be 0.
    labels : sequence of str [n], optional
        Written above each box, or inside it where there is no room above.
    colour : str
        Of the line; a dark rim keeps it visible on any ground.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape, a box without area, or a wrong number of labels.
    """
    boxes = np.array(boxes, dtype=np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have shape {boxes.shape}, expected [n, 4] with left, top, right, bottom")
    if not ((boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])).all():
        raise ValueError("a box has no area: expected left < right and top < bottom")
    labels = [""] * len(boxes) if labels is None else labels
    check_count(labels, "labels", len(boxes))
    image_width, image_height = max(ax.get_xlim()), max(ax.get_ylim())
    rim = [effects.withStroke(linewidth=2.4, foreground="black")]
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        ax.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=1.2,
                path_effects=rim,
            )
        )
        above, leftish = top > 0.1 * image_height, left < image_width / 2
        if label:
            ax.annotate(
                label,
                xy=(left if leftish else right, top if above else bottom),
                xytext=(0, 3.5 if above else -3.5),
                textcoords="offset points",
                ha="left" if leftish else "right",
                va="bottom" if above else "top",
                color=colour,
                bbox={"boxstyle": "square,pad=0.15", "facecolor": "black", "alpha": 0.75, "linewidth": 0},
                parse_math=False,
            )
    return ax


@style()
def overlay_strip(
    fig: Figure | SubFigure | None,
    image: np.ndarray | Sequence[np.ndarray],
    maps: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    *,
    scale: str | float = "absolute",
    columns: int = 6,
    boxes: Sequence[np.ndarray | None] | None = None,
    cmap: str = HEAT_CMAP,
    alpha: tuple[float, float] = OPACITY,
) -> list[Axes]:
    """Draw one image with the attention of several steps, or several frames with that of one; one colour bar for all.

    Parameters
    ----------
    fig : Figure, SubFigure or None
        None makes a new figure, 6.75 inches wide (3.25 for one or two panels); it is ``axes[0].figure``.
    image : uint8 [row_px, col_px, 3] or [panel, row_px, col_px, 3]
        One image under all maps, or a list of as many.
    maps : float [panel, row, col]
        One map per chosen step or frame, NaN where there is no patch.
    titles : sequence of str [panel]
        `step_title` makes them from step and token.
    scale : {"absolute", "per_step"} or float
        See `scale_limits`. With "per_step" the bar runs from 0 to each panel's own largest value.
    columns : int
        Most panels in one row.
    boxes : sequence of (float [n, 4] or None) [panel], optional
        Rectangles outlined in each panel, see `draw_boxes`.
    cmap, alpha
        See `draw_overlay`.

    Returns
    -------
    list of Axes [panel]

    Raises
    ------
    ValueError
        On no maps, an unknown scale, wrong shapes, or not as many images, titles or boxes as maps.
    """
    checked = [check_map(values) for values in maps]
    given = [image] * len(checked) if isinstance(image, np.ndarray) and image.ndim == 3 else list(image)
    images = [check_image(under) for under in given]
    check_count(images, "images", len(checked))
    limits = scale_limits(checked, scale)
    check_count(titles, "titles", len(checked))
    if boxes is not None:
        check_count(boxes, "boxes", len(checked))
    if columns < 1:
        raise ValueError(f"columns is {columns}, expected at least 1")
    cols = min(columns, len(checked))
    rows = -(-len(checked) // cols)
    if fig is None:
        width = DOUBLE if cols > 2 else SINGLE
        panel = width / cols - 0.08  # inches
        lines = 1 + max(title.count("\n") for title in titles)
        height = rows * (panel * max(under.shape[0] / under.shape[1] for under in images) + 0.14 * lines + 0.14) + 0.68
        fig = PaperFigure(figsize=(width, height))
    grid = fig.subplots(rows, cols, squeeze=False).ravel()
    for ax in grid[len(checked) :]:
        ax.set_axis_off()
    axes = list(grid[: len(checked)])
    for panel_index, ax in enumerate(axes):
        vmin, vmax = limits[panel_index]
        draw_overlay(ax, images[panel_index], checked[panel_index], vmin=vmin, vmax=vmax, alpha=alpha, cmap=cmap)
        ax.set_title(titles[panel_index], parse_math=False)
        if boxes is not None and boxes[panel_index] is not None:
            draw_boxes(ax, np.asarray(boxes[panel_index]))
    if scale == "per_step":
        vmax, label = 1.0, "attention (share of the step's largest)"
    else:
        vmax, label = limits[0][1], ATTENTION_UNIT
    draw_colour_bar(grid, vmin=0.0, vmax=vmax, cmap=cmap, alpha=alpha, label=label, location="bottom", ground=images)
    return axes


def _draw_on_image(ax: Axes, image: np.ndarray, rgba: np.ndarray) -> Axes:
    """Draw the image, and over it a colour per patch: float [row, col, 4]."""
    image = check_image(image)
    extent = (0, image.shape[1], image.shape[0], 0)
    ax.imshow(image, extent=extent)
    ax.imshow(rgba, extent=extent, interpolation="nearest")
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set(visible=True, color=GREY, linewidth=0.5)
    return ax
