"""Pages and what stands around their panels: sizes, letters, legends, captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from .style import SINGLE, laid_out_points, lay_out, style, with_fonts
from .tokens import fit_text, label_width

if TYPE_CHECKING:
    from visionpulse_analysis.metrics.estimate import Estimate

_ENTRY = 27.0  # points an entry of a legend needs beside its label: the handle and the gaps
_CAPTION = 7.0  # points
_drawn: WeakKeyDictionary[Axes, list[Estimate]] = WeakKeyDictionary()  # what captions tell the n of


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


def new_panels(
    width: float, heights: list[float], cols: int, width_ratios: list[float] | None = None
) -> tuple[PaperFigure, np.ndarray]:
    """Make a figure of panels, each laid out for itself: one's long labels or legend take no room from the others.

    Parameters
    ----------
    width, heights
        As in `new_page`.
    cols : int
        Panels of each band.
    width_ratios : list of float, optional
        Relative sizes of the columns.

    Returns
    -------
    fig : PaperFigure
    axes : object array [band, column] of Axes
    """
    fig, bands = new_page(width, heights)
    with style():
        parts = [band.subfigures(1, cols, width_ratios=width_ratios, squeeze=False)[0] for band in bands]
        return fig, np.array([[part.subplots() for part in row] for row in parts], dtype=object)


def picture_height(shape: Sequence[int], width: float, most: float = 3.0) -> float:
    """Inches of height for a picture of `shape` (row_px, col_px, ...) in so many inches of width: no hair and no tower.

    A picture is drawn in its own shape; a tall one is narrower than its place.

    Parameters
    ----------
    shape : sequence of int
    width, most : float
        Inches of the place, and the greatest height.

    Returns
    -------
    float
        Inches, at least 0.3.
    """
    return float(np.clip(width * shape[0] / shape[1], 0.3, most))


@style()
def draw_letters(panels: Sequence[Axes | Sequence[Axes]] | np.ndarray) -> None:
    """Name the panels of a figure a, b, c, ... at their upper left corners; call it after the last ``draw_*``.

    Parameters
    ----------
    panels : Axes, or several that make up one panel, of which the first is lettered
        In reading order; those that are not visible are passed over. A single panel gets no letter.
    """
    first = [panel if isinstance(panel, Axes) else np.ravel(np.asarray(panel, dtype=object))[0] for panel in panels]
    first = [ax for ax in first if ax.get_visible() and (ax.axison or ax.has_data() or ax.texts)]
    if len(first) < 2:
        return
    root: Any = first[0].get_figure(root=True)
    lay_out(root)
    for letter, ax in zip(ascii_lowercase, first, strict=False):
        ax.apply_aspect()  # a tall picture is narrower than its place
        beside = ax.yaxis.get_tightbbox() if ax.axison else None
        inner: Any = ax._left_title  # pyright: ignore[reportAttributeAccessIssue]
        inner.set_x(
            11 * root.dpi / 72 / ax.bbox.width
        )  # makes room for the letter, so that what is below keeps its own
        above = [*([ax.title] if ax.get_title() else []), *filter(None, [ax.get_legend()])]
        # Over the labels of the y axis, and left of a title or legend; a title in the middle is measured from there,
        # because the layout makes the axes narrower for the letter.
        lefts = [(beside.x0 if beside else ax.bbox.x0, 0.0)]
        lefts += [(one.get_window_extent().x0 - 11 * root.dpi / 72, 0.5 if one is ax.title else 0.0) for one in above]
        left, share = min(lefts)
        offset = (left - ax.bbox.x0 - share * ax.bbox.width) / root.dpi * 72
        ax.annotate(
            letter,
            (share, 1),
            (offset, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=10,
            fontweight="bold",
            gid="letter",
            annotation_clip=False,
        )


def note_estimates(ax: Axes, estimates: Iterable[Estimate]) -> None:
    """Remember what was drawn with its interval: `draw_caption` tells of it.

    Parameters
    ----------
    ax : Axes
    estimates : iterable of Estimate
    """
    _drawn.setdefault(ax, []).extend(estimates)


@style()
def draw_caption(fig: Figure, note: str = "", *, marks: str = "bars") -> None:
    """Write under a figure how many samples it is about and what its intervals resample; the figure grows by the lines.

    Parameters
    ----------
    fig : Figure
        Its estimates were drawn by `draw_estimates` or `draw_curve`, or told by `note_estimates`.
    note : str
        What else a reader needs, in whole sentences.
    marks : str
        What shows an interval: "bars", "bands".
    """
    told = f"{_told(fig, marks)} {note}".strip()
    if not told:
        return
    width, height = fig.get_size_inches()
    lines = fit_text(told, (width - 0.25) * 72, size=_CAPTION).split("\n")
    fig.set_size_inches(width, height + len(lines) * _CAPTION * 1.2 / 72 + 0.04)
    fig.supxlabel("\n".join(lines), x=0.04 / width, ha="left", fontsize=_CAPTION, parse_math=False, gid="caption")


def _told(fig: Figure, marks: str) -> str:
    drawn = [one for ax in fig.axes for one in _drawn.get(ax, ()) if np.isfinite(one.value)]
    if not drawn:
        return ""
    counts: dict[str, set[int]] = {}
    for one in drawn:
        counts.setdefault(one.unit, set()).add(one.n_clusters)
    n = " and ".join(
        f"n = {min(few):,}{f' to {max(few):,}' if len(few) > 1 else ''} {unit}{'s' * (few != {1})}"
        for unit, few in counts.items()
    )
    shown = [one for one in drawn if np.isfinite(one.low)]
    if not shown:
        return f"{n}; no intervals: {next((one.refused for one in drawn if one.refused), 'not estimated')}."
    sure = " and ".join(f"{100 * level:g} %" for level in sorted({one.confidence for one in shown}))
    over = " and ".join(dict.fromkeys(f"{one.unit}s" for one in shown))
    return f"{n}; {marks}: {sure} intervals, which resample {over}."


@style()
def draw_legend(axes: Axes | Sequence[Axes] | np.ndarray) -> None:
    """Put the legend above the Axes; call it after the last ``draw_*``.

    Parameters
    ----------
    axes : Axes, or several
        Of several Axes the figure gets one legend, in which a label that occurs more than once is named once.

    Raises
    ------
    ValueError
        If nothing on the Axes has a label.
    """
    several = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).ravel())
    entries = {}
    for ax in several:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        raise ValueError("nothing on these Axes has a label: pass label=... to the draw_* functions first")
    labels, handles = list(entries), list(entries.values())
    if len(several) == 1:
        columns = _columns(labels, laid_out_points(several[0])[0])
        several[0].legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)
    else:
        figure = several[0].figure
        columns = _columns(labels, figure.get_window_extent().width / figure.get_dpi() * 72)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def finish(
    fig: Figure,
    panels: Axes | Sequence[Axes | Sequence[Axes]] | np.ndarray,
    note: str = "",
    *,
    marks: str = "bars",
    legend: bool = False,
) -> Figure:
    """Name the panels of a page, put one legend over them where something has a label, and write the caption.

    Parameters
    ----------
    fig : Figure
    panels : Axes, or several
        As of `draw_letters`.
    note, marks : str
        As of `draw_caption`.
    legend : bool
        Draw the legend.

    Returns
    -------
    fig : Figure
    """
    shown: Any = [panels] if isinstance(panels, Axes) else panels.ravel() if isinstance(panels, np.ndarray) else panels
    if legend and any(ax.get_legend_handles_labels()[1] for ax in shown):
        draw_legend(shown)
    draw_letters(shown)
    draw_caption(fig, note, marks=marks)
    return fig


def _columns(labels: list[str], width: float) -> int:
    """Columns of as few rows as fit, of about equal length; matplotlib fills one column after the other."""
    for columns in range(len(labels), 1, -1):
        split = np.array_split(np.asarray(labels, dtype=object), columns)
        if sum(max(label_width(label) for label in column) + _ENTRY for column in split) <= width:
            rows = -(-len(labels) // columns)
            return -(-len(labels) // rows)
    return 1
