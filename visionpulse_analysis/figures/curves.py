"""Curves over the steps of a trace."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes

from .checks import check_bracket, check_count, check_vector
from .legend import draw_legend
from .style import ACCENT, GREY, INK, laid_out_points, style
from .token_axis import write_tokens
from .tokens import check_steps

_VISUAL_TINT = "#fbe3b3"


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
    second, fifth, tenth ... Marked steps come first. Set the width of the figure before calling this.

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
    if kinds is not None:
        check_count(kinds, "kinds", count)
        unknown = sorted(set(kinds) - {"visual", "text"})
        if unknown:
            raise ValueError(f"kinds has {unknown[0]!r}, expected 'visual' or 'text' for each step")
        _shade(ax, np.asarray(kinds) == "visual")
    marker = "o" if count <= 150 else ""
    ax.plot(np.arange(count), mass, marker=marker, markersize=2.2, linewidth=0.9, color=INK, clip_on=False)
    marked = sorted(marked_steps)
    ax.plot(marked, mass[marked], "o", color=ACCENT, markersize=4.5, clip_on=False, zorder=4)
    # Room above 1 for the numbers of marked steps; the axis itself ends at 1.
    ax.set(xlim=(-0.7, count - 0.3), ylim=(0, 1.14), xlabel="generated token", ylabel="visual attention mass")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    ax.spines["left"].set_bounds(0, 1)
    width, height = laid_out_points(ax)
    slot = width / count  # points per step
    _number_steps(ax, mass, marked, slot, height)
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
    for place, (name, values) in enumerate(curves.items()):
        check_count(list(values), name, count)
        gaps = np.concatenate([[True], np.isnan(values), [True]])
        alone = np.flatnonzero(~gaps[1:-1] & gaps[:-2] & gaps[2:])  # no line leads there: a dot
        every = None if count <= 150 else alone.tolist()
        line = {"marker": "o", "markersize": 2.2, "linewidth": 0.9, "linestyle": "--" if place else "-"}
        ax.plot(np.arange(count), values, label=name, markevery=every, clip_on=False, **line)
    ax.set(xlim=(-0.7, count - 0.3), ylim=(0, 1.14 * top), ylabel=label, xlabel="generated token")
    ax.axvline(cursor, color=INK, linewidth=1.0, zorder=0)
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
    if len(curves) > 1:
        draw_legend(ax)
    write_tokens(ax, tokens, [cursor], laid_out_points(ax)[0] / count)
    return ax


@style()
def draw_line_band(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    low: Sequence[float] | np.ndarray | None = None,
    high: Sequence[float] | np.ndarray | None = None,
    label: str | None = None,
    *,
    colour: str | None = None,
    dashed: bool = False,
) -> Axes:
    """Draw a line with the band between `low` and `high` around it; call it once per line.

    Parameters
    ----------
    ax : Axes
    x, y : float [point]
    low, high : float [point], optional
        Ends of the interval, both or neither.
    label : str, optional
        For `draw_legend`.
    colour : str, optional
        By default the next of the palette.
    dashed : bool
        For null models and references.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On lengths that differ, values that are not finite, one end without the other, or a line outside
        its band.
    """
    x = check_vector(x, "x")
    y = check_vector(y, "y", length=len(x))
    if (low is None) != (high is None):
        raise ValueError("low and high belong together: give both ends of the band or none")
    ends = None
    if low is not None and high is not None:
        ends = check_vector(low, "low", length=len(x)), check_vector(high, "high", length=len(x))
        check_bracket(y, *ends)
    # Points get dots while they can be told apart.
    marker = "o" if len(x) <= 40 and not dashed else ""
    (line,) = ax.plot(x, y, label=label, color=colour, marker=marker, markersize=2.5, linestyle="--" if dashed else "-")
    if ends is not None:
        ax.fill_between(x, *ends, color=line.get_color(), alpha=0.2, linewidth=0)
    return ax


def _shade(ax: Axes, visual: np.ndarray) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], visual.astype(int), [0]])))
    label = "visual step"
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        ax.axvspan(start - 0.5, end - 0.5, 0, 1 / 1.14, color=_VISUAL_TINT, linewidth=0, zorder=0, label=label)
        label = "_"  # one legend entry for all of them


def _number_steps(ax: Axes, mass: np.ndarray, marked: list[int], slot: float, height: float) -> None:
    """Write each marked step's number above its dot; it leans away from a neighbour's, and to where no line runs."""
    for place, step in enumerate(marked):
        width = 5.0 * len(str(step))  # points
        near = [step - other for other in (*marked[:place], *marked[place + 1 :]) if abs(step - other) * slot < 14]
        free = {  # where the number begins and ends beside its step, in points
            "center": (-width / 2, width / 2),
            "left": (0.0, width),
            "right": (-width, 0.0),
        }
        if near:
            free = {side: free[side] for side in (("left",) if max(near) > 0 else ("right",))}
        crossed = {side: _rises(mass, step, slot, height, ends) for side, ends in free.items()}
        ax.annotate(
            str(step),
            (step, mass[step]),
            xytext=(0, 4.5),
            textcoords="offset points",
            ha=min(crossed, key=lambda side: crossed[side]),
            color=ACCENT,
            fontweight="bold",
            path_effects=[effects.withStroke(linewidth=2, foreground="white")],
            annotation_clip=False,
            zorder=5,
        )


def _rises(mass: np.ndarray, step: int, slot: float, height: float, ends: tuple[float, float]) -> bool:
    """Whether the curve runs through what is written above a step, from and to so many points beside it."""
    beside = np.linspace(*ends, 33)
    points = np.interp(step + beside / slot, np.arange(len(mass)), mass - mass[step]) * height / 1.14
    return bool((points > 3.5).any())  # a line that rises so far close by, rises through the number
