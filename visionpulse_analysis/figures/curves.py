"""Curves over the steps of a trace."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from .methods import known_look, look
from .page import draw_legend
from .scales import check_count, check_vector
from .style import ACCENT, GREY, INK, LIGHT_GREY, TOKEN_CMAP, laid_out_points, style
from .tokens import check_steps, label_width, write_tokens

_VISUAL_TINT = "#fbe3b3"
_CROWDED = 2.5  # points from one step to the next, below which a line through all of them would be solid ink
_SMOOTH = 6.0  # points over which a curve is then averaged
_RUG = (-0.075, -0.02)  # where the rug lies, as a share of the axis from 0 to 1


@style()
def draw_mass_curve(
    ax: Axes,
    mass: Sequence[float] | np.ndarray,
    tokens: Sequence[str],
    *,
    marked_steps: Collection[int] = (),
    kinds: Sequence[str] | None = None,
) -> Axes:
    """Draw the visual attention mass of each step over the tokens that the steps produced.

    As many tokens as fit in two rows are all written (about 120 on 6.75 inches), of longer traces every
    second, fifth, tenth ... Marked steps come first. Where steps are too close for a line through each (from about 190
    on 6.75 inches), the line is their running mean, the steps themselves are faint, and a rug under it has a tick for
    each token: tinted for visual steps where `kinds` are given, else the darker the more mass. Set the width of the
    figure before calling this.

    Parameters
    ----------
    ax : Axes
    mass : float [step]
        Sum of the attention over all patches, 0 to 1.
    tokens : sequence of str [step]
    marked_steps : collection of int
        Steps shown elsewhere as pictures: a dot and the step's number.
    kinds : sequence of {"visual", "text"} [step], optional
        Visual steps get a tinted ground; `draw_legend` explains it.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On mass outside 0 to 1, lengths that differ, an unknown kind, or a marked step that does not exist.
    """
    mass = check_vector(mass, "mass", low=0, high=1.001)  # a float32 sum of a softmax row may end above 1
    count = len(mass)
    check_count(tokens, "tokens", count)
    check_steps(marked_steps, count)
    visual = None
    if kinds is not None:
        check_count(kinds, "kinds", count)
        unknown = sorted(set(kinds) - {"visual", "text"})
        if unknown:
            raise ValueError(f"kinds has {unknown[0]!r}, expected 'visual' or 'text' for each step")
        visual = np.asarray(kinds) == "visual"
    marked = sorted(marked_steps)
    # Room above 1 for the numbers of marked steps; the axis itself ends at 1.
    ax.set(xlim=(-0.7, count - 0.3), ylim=(0, 1.14), xlabel="generated token", ylabel="visual attention mass")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    ax.spines["left"].set_bounds(0, 1)
    slot = laid_out_points(ax)[0] / count  # points per step
    _draw_line(ax, mass, slot, color=INK)
    if slot < _CROWDED:
        _draw_rug(ax, mass if visual is None else visual)
    elif visual is not None:
        _shade(ax, visual)
    if marked:  # an empty line would lie in the corner of the page, and the layout make room for it there
        ax.plot(marked, mass[marked], "o", color=ACCENT, markersize=4.5, clip_on=False, zorder=4)
    _number_steps(ax, mass, marked, slot)
    write_tokens(ax, tokens, marked, slot)
    return ax


@style()
def draw_step_curves(
    ax: Axes,
    curves: Mapping[str, Sequence[float] | np.ndarray],
    tokens: Sequence[str],
    *,
    label: str,
    cursor: int,
    moments: Mapping[str, int] | None = None,
    methods: Sequence[str] = (),
) -> Axes:
    """Draw what one trace, or several over one row of aligned tokens, gave to something at each step.

    Parameters
    ----------
    ax : Axes
    curves : dict of float [column]
        By name, from 0 on; NaN where a trace has no token. The second and later lines are dashed.
    tokens : sequence of str [column]
    label : str
        What is drawn, with its unit.
    cursor : int
        The column shown elsewhere as a picture.
    moments : dict of int, optional
        Columns marked with a word.
    methods : sequence of str, optional
        By which method each curve came about, for its colour; by default its name says so.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On lengths that differ, no finite value, or a column that does not exist.
    """
    count, moments = len(tokens), moments or {}
    check_steps([cursor, *moments.values()], count)
    top = max((float(np.nanmax(values)) for values in curves.values() if np.isfinite(values).any()), default=0) or 1.0
    ax.set(xlim=(-0.7, count - 0.3), ylim=(0, 1.14 * top), ylabel=label, xlabel="generated token")
    slot = laid_out_points(ax)[0] / count
    for place, (name, values) in enumerate(curves.items()):
        check_count(list(values), name, count)
        method = look(methods[place]) if methods else known_look(name)
        colour = method.colour if method else f"C{place}"
        dashes = "--" if place else "-"
        _draw_line(ax, np.asarray(values, float), slot, label=name, color=colour, linestyle=dashes)
    ax.axvline(cursor, color=INK, linewidth=1.0, zorder=0, label="step shown")
    for word, column in moments.items():
        ax.axvline(column - 0.5, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        right = column > count / 2
        ax.annotate(
            word,
            (column - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2 if right else 2, -1),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            color=GREY,
        )
    draw_legend(ax)
    write_tokens(ax, tokens, [cursor], slot)
    return ax


def _shade(ax: Axes, visual: np.ndarray) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], visual.astype(int), [0]])))
    label = "visual step"
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        ax.axvspan(start - 0.5, end - 0.5, 0, 1 / 1.14, color=_VISUAL_TINT, linewidth=0, zorder=0, label=label)
        label = "_"  # one legend entry for all of them


def _draw_line(ax: Axes, values: np.ndarray, slot: float, label: str | None = None, **line: Any) -> None:
    """Draw values [step], NaN where there is none: each with a dot, or crowded ones as their running mean over all."""
    steps, line = np.arange(len(values)), {"linewidth": 0.9, "clip_on": False, "label": label} | line
    if slot >= _CROWDED:
        gaps = np.concatenate([[True], np.isnan(values), [True]])
        alone = np.flatnonzero(~gaps[1:-1] & gaps[:-2] & gaps[2:])  # no line leads there: a dot
        every = None if len(values) <= 150 else alone.tolist()
        ax.plot(steps, values, marker="o", markersize=2.2, markevery=every, **line)
        return
    span = 2 * round(_SMOOTH / slot / 2) + 1
    known, ones = np.isfinite(values), np.ones(span)
    counts = np.convolve(known, ones, "same")
    mean = np.convolve(np.where(known, values, 0), ones, "same") / np.maximum(counts, 1)
    ax.plot(steps, values, color=line["color"], linewidth=0.3, alpha=0.3, clip_on=False, label="each step")
    told = f"mean of {span} steps"
    line |= {"linewidth": 1.2, "label": told if label is None else f"{label}, {told}"}
    ax.plot(steps, np.where(known, mean, np.nan), **line)


def _draw_rug(ax: Axes, shade: np.ndarray) -> None:
    """Put a tick for each token under the curve: tinted or grey for truth values, else the darker the larger."""
    if shade.dtype == bool:
        colours = np.where(shade[:, None], to_rgba(_VISUAL_TINT), to_rgba(LIGHT_GREY))
        ax.add_patch(Rectangle((0, 0), 0, 0, color=_VISUAL_TINT, label="visual step"))  # for the legend
    else:
        colours = matplotlib.colormaps[TOKEN_CMAP](shade)
    limits = ax.get_xlim()
    extent = (-0.5, len(shade) - 0.5, *_RUG)
    ax.imshow(colours[None], extent=extent, aspect="auto", interpolation="nearest", zorder=2)
    ax.set(xlim=limits, ylim=(_RUG[0] - 0.01, 1.14))


def _number_steps(ax: Axes, mass: np.ndarray, marked: list[int], slot: float) -> None:
    """Write the marked steps' numbers in a row above the curve, moved apart, each with a line to its dot.

    Where there are more than the row holds, every second, third, ... is numbered.
    """
    widths = [label_width(str(step)) * 1.15 + 3 for step in marked]  # bold, with a gap
    every = max(1, int(np.ceil(sum(widths) / (slot * len(mass)))))
    numbered, room = marked[::every], len(mass) * slot
    at = spread([(step + 0.5) * slot / room for step in numbered], [width / room for width in widths[::every]])
    for step, x in zip(numbered, at, strict=True):
        ax.annotate(
            str(step),
            (step, mass[step]),
            xytext=(x * len(mass) - 0.5, 1),
            textcoords=offset_copy(ax.transData, ax.get_figure(root=True), y=4, units="points"),  # above a dot at 1
            ha="center",
            va="bottom",
            color=ACCENT,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": ACCENT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
            zorder=5,
        )


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of things that lie in 0..1 side by side without touching, near where they should be.

    wanted : rising. sizes : the extent of each.
    """
    at, floor = [], 0.0
    for y, size in zip(wanted, sizes, strict=True):
        at.append(max(y, floor + size / 2))
        floor = at[-1] + size / 2
    ceiling = max(1.0, sum(sizes))
    for i in range(len(at) - 1, -1, -1):
        at[i] = min(at[i], ceiling - sizes[i] / 2)
        ceiling = at[i] - sizes[i] / 2
    return at
