"""Several steps of one trace, or several frames of a video, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from .checks import check_count, check_image, check_map
from .overlays import OPACITY, draw_boxes, draw_overlay
from .scales import ATTENTION_UNIT, draw_colour_bar, scale_limits
from .style import DOUBLE, HEAT_CMAP, SINGLE, PaperFigure, style


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
        height = rows * (panel * max(under.shape[0] / under.shape[1] for under in images) + 0.14 * lines + 0.14) + 0.55
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
    draw_colour_bar(grid, vmin=0.0, vmax=vmax, cmap=cmap, alpha=alpha, label=label, location="bottom")
    return axes
