"""Sizes, colours and the one style of all figures; importing this changes nothing in matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from .fonts import with_fonts

SINGLE = 3.25  # inches: one column of a journal page
DOUBLE = 6.75  # inches: the full width of a journal page

HEAT_CMAP = "inferno"  # overlays: bright on a dimmed image
VALUE_CMAP = "cividis"  # matrices
TOKEN_CMAP = "Blues"  # behind words: light enough to read them
INK = "#262626"
GREY = "#8c8c8c"
LIGHT_GREY = "#d9d9d9"
ACCENT = "#D55E00"
MARKERS = "osD^vPX"

_STYLE_FILE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the figures inside a ``with`` block, or to a function as ``@style()``.

    The user's own matplotlib settings are put aside meanwhile and come back afterwards.
    """
    with matplotlib.style.context([str(_STYLE_FILE)], after_reset=True):
        yield


class PaperFigure(Figure):
    """A figure that pyplot does not know (nothing to close, no window) and that notebooks still show."""

    def draw(self, renderer: Any) -> None:
        with with_fonts(self):
            super().draw(renderer)

    def get_tightbbox(self, *given: Any, **options: Any) -> Any:
        with with_fonts(self):
            return super().get_tightbbox(*given, **options)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        with style():
            FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()


def new_figure(
    width: float = SINGLE,
    height: float = 2.2,
    rows: int = 1,
    cols: int = 1,
    *,
    height_ratios: list[float] | None = None,
    width_ratios: list[float] | None = None,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[PaperFigure, Any]:
    """Make an empty figure in the style of the paper.

    Parameters
    ----------
    width, height : float
        Inches; `width` is usually ``SINGLE`` or ``DOUBLE``.
    rows, cols : int
        Number of Axes down and across.
    height_ratios, width_ratios : list of float, optional
        Relative sizes of the rows and columns.
    sharex, sharey : bool
        Whether all Axes have the same x or y limits.

    Returns
    -------
    fig : PaperFigure
    axes : Axes, or object array [rows, cols] of Axes when there is more than one
        An array of one row or one column has that axis removed, as in ``plt.subplots``.

    Raises
    ------
    ValueError
        If a size or a count is not positive.
    """
    if not (width > 0 and height > 0 and rows >= 1 and cols >= 1):
        raise ValueError(f"figure of {width} x {height} inches with {rows} x {cols} Axes: all four must be positive")
    with style():
        fig = PaperFigure(figsize=(width, height))
        axes = fig.subplots(
            rows,
            cols,
            sharex=sharex,
            sharey=sharey,
            height_ratios=height_ratios,
            width_ratios=width_ratios,
        )
    return fig, axes


def new_page(width: float, heights: list[float]) -> tuple[PaperFigure, list[SubFigure]]:
    """Make a figure of bands one above the other, each laid out for itself.

    Make the Axes of a band inside ``with style():``, by ``band.subplots()`` or ``overlay_strip(band, ...)``.

    Parameters
    ----------
    width : float
        Inches.
    heights : list of float
        Inches of each band, from the top.

    Returns
    -------
    fig : PaperFigure
    bands : list of SubFigure

    Raises
    ------
    ValueError
        If there is no band or a size is not positive.
    """
    if not heights or not all(size > 0 for size in (width, *heights)):
        raise ValueError(f"page {width} inches wide with bands of {heights} inches: all must be positive")
    with style():
        fig = PaperFigure(figsize=(width, sum(heights)))
        bands = fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    return fig, list(bands[:, 0])


def laid_out_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the Axes in points, with room made for the labels they have by now."""
    root = ax.get_figure()
    if root is not None:
        root.canvas.figure.draw_without_rendering()  # the canvas knows the root, also inside a SubFigure
    return axes_points(ax)


def axes_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the Axes in points (1/72 inch), before the layout makes room for labels."""
    # get_window_extent is in pixels of the root figure, also inside a SubFigure.
    box, dpi = ax.get_window_extent(), ax.figure.get_dpi() if ax.figure is not None else 72.0
    return box.width / dpi * 72, box.height / dpi * 72
