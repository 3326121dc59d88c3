"""Sizes, colours and the one style of all figures; importing this changes nothing in matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

_STYLE_FILE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the figures inside a ``with`` block, or to a function as ``@style()``.

    The user's own matplotlib settings are put aside meanwhile and come back afterwards.
    """
    with matplotlib.style.context([str(_STYLE_FILE)], after_reset=True):
        yield


def lay_out(fig: Figure) -> None:
    """Make room for all labels that a figure has by now, as drawing it would, without drawing it."""
    if (engine := fig.get_layout_engine()) is not None:
        with with_fonts(fig):
            engine.execute(fig)


def laid_out_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the Axes in points, with room made for the labels they have by now."""
    root = ax.get_figure(root=True)
    if root is not None:
        lay_out(root)
    return axes_points(ax)


def axes_points(ax: Axes) -> tuple[float, float]:
    """Width and height of the Axes in points (1/72 inch), before the layout makes room for labels."""
    # get_window_extent is in pixels of the root figure, also inside a SubFigure.
    box, dpi = ax.get_window_extent(), ax.figure.get_dpi() if ax.figure is not None else 72.0
    return box.width / dpi * 72, box.height / dpi * 72
