"""Matrices as coloured cells."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .checks import check_count, check_limits, check_map
from .scales import draw_colour_bar
from .style import LIGHT_GREY, VALUE_CMAP, axes_points, style
from .tokens import text_colour


@style()
def draw_matrix(
    ax: Axes,
    matrix: np.ndarray,
    xlabels: Sequence[str],
    ylabels: Sequence[str],
    *,
    vmin: float,
    vmax: float,
    label: str,
    xlabel: str = "",
    ylabel: str = "",
    cmap: str = VALUE_CMAP,
) -> Axes:
    """Draw a matrix as coloured cells with its colour bar; small ones also get their numbers.

    Parameters
    ----------
    ax : Axes
    matrix : float [row, col]
        NaN cells stay grey.
    xlabels, ylabels : sequence of str [col], [row]
        Names of columns and rows; only every n-th is written where all do not fit.
    vmin, vmax : float
        Values drawn in the first and last colour.
    label : str
        What the colour shows, with its unit.
    xlabel, ylabel : str
        Names of the axes.
    cmap : str
        Name of a matplotlib colour map.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On a wrong shape, a wrong number of names, or limits out of order.
    """
    matrix = check_map(matrix, "matrix")
    check_limits(vmin, vmax)
    rows, cols = matrix.shape
    check_count(xlabels, "xlabels", cols)
    check_count(ylabels, "ylabels", rows)
    picture = ax.imshow(matrix, vmin=vmin, vmax=vmax, cmap=cmap, interpolation="nearest")
    ax.set_facecolor(LIGHT_GREY)
    width, height = axes_points(ax)
    longest = max(len(name) for name in xlabels) * 5.2 + 4
    x_step, y_step = max(1, int(np.ceil(longest * cols / width))), max(1, int(np.ceil(11 * rows / height)))
    ax.set_xticks(range(0, cols, x_step), list(xlabels)[::x_step], parse_math=False)
    ax.set_yticks(range(0, rows, y_step), list(ylabels)[::y_step], parse_math=False)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[:].set_visible(False)
    if width / cols > 20 and height / rows > 11:
        for (row, col), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                colour = text_colour(np.asarray(picture.to_rgba(np.array([value]))[0]))
                ax.text(col, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    draw_colour_bar(ax, vmin=vmin, vmax=vmax, cmap=cmap, label=label)
    return ax
