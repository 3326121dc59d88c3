"""Statistical plots: lines with bands, estimates with intervals, frontiers, distributions, pairs, matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .methods import Look, known_look, look
from .page import note_estimates
from .scales import check_bracket, check_count, check_limits, check_map, check_vector
from .style import GREY, LIGHT_GREY, VALUE_CMAP, axes_points, style
from .tokens import label_width

if TYPE_CHECKING:
    from visionpulse_analysis.metrics.estimate import Estimate
    from visionpulse_analysis.metrics.nulls import Null

Vector = Sequence[float] | np.ndarray
FEW = 20  # values that are shown one by one: a histogram of them would show its bins
APART = 0.05  # how far the arms of a frontier are moved apart, as a share of what they keep


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
    markevery: tuple[int, int] | None = None,
) -> Axes:
    """Draw a line with the band between `low` and `high` around it; call it once per line.

    Parameters
    ----------
    ax : Axes
    x, y : float [point]
    low, high : float [point], optional
        Ends of the interval, both or neither.
    label : str, optional
        For `draw_legend`. A method of `METHODS` is drawn as there.
    colour : str, optional
        By default the method's, else the next of the palette.
    dashed : bool
        For null models and references.
    markevery : (int, int), optional
        First point with a marker, and how many points on the next is; by default all of up to 40 points.

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
    look = known_look(label or "")
    look = look or Look(label or "", colour or "", "o")  # no colour: the next of the palette
    # Points get markers while they can be told apart.
    marker = look.marker if (len(x) <= 40 or markevery) and not dashed else ""
    name: dict[str, Any] = {"label": look.label or None, "color": colour or look.colour or None}
    (line,) = ax.plot(x, y, marker=marker, markersize=3, markevery=markevery, linestyle="--" if dashed else "-", **name)
    if ends is not None:
        ax.fill_between(x, *ends, color=line.get_color(), alpha=0.2, linewidth=0)
    return ax


def draw_estimates(ax: Axes, named: Mapping[str, Estimate], nulls: Sequence[Null | None] = (), **options: Any) -> Axes:
    """Draw one `Estimate` per row; a missing interval closes on its point, an undefined value leaves its row out.

    Parameters
    ----------
    ax : Axes
    named : mapping of name to Estimate, the first on top
    nulls : sequence of nulls (`low`, `high`) or None, optional
        As many as estimates, or none; their bands become grey bars, no wider than a point where undefined.
    options
        Of `draw_interval`.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        If no value is defined; or as `draw_interval`.
    """
    known = [place for place, one in enumerate(named.values()) if np.isfinite(one.value)]
    if not known:
        raise ValueError(f"no estimate is defined among {list(named)}: there is nothing to draw")
    names, estimates = [list(named)[i] for i in known], [list(named.values())[i] for i in known]
    if nulls:
        bands = [
            (one.value, one.value) if (null := nulls[i]) is None or np.isnan(null.low) else (null.low, null.high)
            for i, one in zip(known, estimates, strict=True)
        ]
        options |= {"null_low": [low for low, _ in bands], "null_high": [high for _, high in bands]}
    note_estimates(ax, estimates)
    return draw_interval(ax, names, *ends(estimates), **options)


def draw_curve(
    ax: Axes, x: Vector | range, estimates: Sequence[Estimate], label: str | None = None, **options: Any
) -> Axes:
    """Draw one `Estimate` per x as a line with its band, which closes on the line where there is no interval.

    Parameters
    ----------
    ax : Axes
    x : float [n]
    estimates : sequence of Estimate [n]
    label, options
        Of `draw_line_band`.

    Returns
    -------
    ax : Axes
    """
    note_estimates(ax, estimates)
    return draw_line_band(ax, np.asarray(x, dtype=float), *ends(estimates), label=label, **options)


def ends(estimates: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, lower and upper ends, three float64 [estimate]; the value itself where there is no interval."""
    value, low, high = np.array([(one.value, one.low, one.high) for one in estimates], dtype=float).reshape(-1, 3).T
    return value, np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high)


@style()
def draw_interval(
    ax: Axes,
    names: Sequence[str],
    estimate: Vector,
    low: Vector,
    high: Vector,
    *,
    reference: float | None = None,
    reference_label: str | None = None,
    null_low: Vector | None = None,
    null_high: Vector | None = None,
    xlabel: str = "",
    null_label: str = "null",
    methods: bool = False,
) -> Axes:
    """Draw estimates as points with their intervals, one name per row, the first on top.

    Parameters
    ----------
    ax : Axes
    names : sequence of str [item]
        A method of `METHODS` gets its name, colour and marker from there.
    estimate, low, high : float [item]
        The points and the ends of their intervals.
    reference : float, optional
        A dashed upright line, for example 0 for differences.
    reference_label : str, optional
        What the line is, for `draw_legend`; by default its value.
    null_low, null_high : float [item], optional
        The band expected if there were nothing to find, a grey bar in each row.
    xlabel : str
        What is estimated, with its unit.
    null_label : str
        Name of the grey bars for `draw_legend`.
    methods : bool
        Whether all names are methods, so that those that are not in `METHODS` get their colour and marker, too.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On lengths that differ, an estimate outside its interval, or one end of the null band alone.
    """
    estimate = check_vector(estimate, "estimate")
    low = check_vector(low, "low", length=len(estimate))
    high = check_vector(high, "high", length=len(estimate))
    check_count(names, "names", len(estimate))
    check_bracket(estimate, low, high)
    if (null_low is None) != (null_high is None):
        raise ValueError("null_low and null_high belong together: give both ends of the band or none")
    row = np.arange(len(estimate))
    if null_low is not None and null_high is not None:
        left = check_vector(null_low, "null_low", length=len(estimate))
        right = check_vector(null_high, "null_high", length=len(estimate))
        if (left > right).any():
            raise ValueError("null_low is above null_high: expected the lower end of the band first")
        ax.barh(row, right - left, left=left, height=0.6, color=LIGHT_GREY, label=null_label)
    if reference is not None:
        draw_reference(ax, reference, f"{reference:g}" if reference_label is None else reference_label, upright=True)
    looks = [look(name) if methods else known_look(name) or Look(name, "C0", "o") for name in names]
    for y, one in enumerate(looks):
        x, ends = estimate[y], [[estimate[y] - low[y]], [high[y] - estimate[y]]]
        drawn = ax.errorbar(x, y, xerr=ends, fmt=one.marker, color=one.colour, markersize=4, linewidth=1.2)
        drawn.lines[0].set_gid(one.label)
    ax.use_sticky_edges = False  # else the null bars end at the frame
    ax.set_yticks(row, [one.label for one in looks], parse_math=False)
    ax.set(ylim=(len(estimate) - 0.4, -0.6), xlabel=xlabel)
    ax.xaxis.set_major_locator(MaxNLocator(int(np.clip(axes_points(ax)[0] / 42, 2, 6))))  # points a number needs
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


@style()
def draw_frontier(
    ax: Axes,
    arms: Mapping[str, tuple[Vector, Vector, Vector, Vector]],
    *,
    dense: float | None = None,
    ylabel: str = "accuracy",
    ylim: tuple[float, float] | None = (0.0, 1.0),
) -> Axes:
    """Draw accuracy (or another outcome) against the mean share of patches kept, one line per arm.

    Arms are moved apart sideways by a few per cent of what they keep, so that none hides behind another.

    Parameters
    ----------
    ax : Axes
        Its x axis becomes logarithmic, in percent.
    arms : mapping of method to (retention, estimate, low, high), each float [budget]
        Retention from above 0 to 1; `low` and `high` are the ends of the interval.
    dense : float, optional
        The outcome without pruning, a dashed line.
    ylabel : str
    ylim : (float, float), optional
        None lets the data decide.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On no arms, lengths that differ, retention outside (0, 1], or an estimate outside
        its interval.
    """
    if not arms:
        raise ValueError("0 arms, expected at least 1")
    lines = {}
    for name, (retention, estimate, low, high) in arms.items():
        x = check_vector(retention, f"retention of {name!r}", low=1e-6, high=1)
        y = check_vector(estimate, f"estimate of {name!r}", length=len(x))
        ends = [check_vector(end, f"interval of {name!r}", length=len(x)) for end in (low, high)]
        check_bracket(y, *ends)
        order = np.argsort(x, kind="stable")
        lines[name] = (x[order], y[order], ends[0][order], ends[1][order])
    if dense is not None:
        draw_reference(ax, dense, "dense")
    for place, (name, (x, y, low, high)) in enumerate(lines.items()):
        one, bars = look(name), [y - low, high - y]
        moved = x * (1 + APART * (place - (len(lines) - 1) / 2))
        hollow: dict[str, Any] = {"markerfacecolor": "white"} if one.hollow else {}
        drawn = ax.errorbar(
            moved, y, yerr=bars, label=one.label, color=one.colour, marker=one.marker, linewidth=1, elinewidth=0.7,
            capsize=0, clip_on=False, **hollow,
        )  # fmt: skip
        drawn.lines[0].set_gid(one.label)
    smallest = min(x.min() for x, *_ in lines.values())
    ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    smallest *= 1 - APART * len(lines) / 2
    largest = max(x.max() for x, *_ in lines.values()) * (1 + APART * len(lines) / 2)
    ax.set(xscale="log", xlim=(smallest * 0.9, largest * 1.1), xlabel="patches kept (%)", ylabel=ylabel)
    ax.set_xticks([tick for tick in ticks if smallest * 0.9 <= tick <= largest * 1.1])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    if ylim is not None:
        ax.set_ylim(*ylim)
    return ax


def draw_reference(ax: Axes, value: float, label: str, *, upright: bool = False) -> None:
    """Draw a dashed grey line across the Axes, and name it for `draw_legend`.

    Parameters
    ----------
    ax : Axes
    value : float
        Where it lies, in the unit of its axis.
    label : str
    upright : bool
        At a value of x, not of y.
    """
    line = {"color": GREY, "linewidth": 0.8, "linestyle": "--", "zorder": 1, "label": label}
    (ax.axvline if upright else ax.axhline)(value, **line)


@style()
def draw_histogram(
    ax: Axes,
    values: Vector | Mapping[str, Vector],
    bins: int | Vector,
    *,
    xlabel: str,
    ylabel: str = "samples",
    reference: float | None = None,
    reference_label: str | None = None,
) -> Axes:
    """Draw how often values occur; several named sets share the same bins.

    Up to 20 values are dots in piles over their bins instead of bars, because bars would make few look like many.

    Parameters
    ----------
    ax : Axes
    values : float [n], or mapping of name to float [n]
        A name of `METHODS` is drawn in its colour.
    bins : int or float [n_bins + 1]
        Number of bins over the range of all values, or their edges.
    xlabel, ylabel : str
    reference : float, optional
        A dashed upright line, for example 0 for differences.
    reference_label : str, optional
        What the line is, for `draw_legend`; by default its value.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On no values, values that are not finite, or values outside the edges (they would vanish).
    """
    import seaborn  # here, because it takes a second that a figure without it need not wait

    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    if not sets:
        raise ValueError("no sets of values: expected at least one")
    checked = {name: check_vector(data, f"values {name}".strip()) for name, data in sets.items()}
    together = np.concatenate(list(checked.values()))
    edges = np.histogram_bin_edges(together, bins)  # raises ValueError on bins that make no sense
    if together.min() < edges[0] or together.max() > edges[-1]:
        raise ValueError(
            f"values run from {together.min():g} to {together.max():g}, "
            f"the bins only from {edges[0]:g} to {edges[-1]:g}: widen them"
        )
    below = np.zeros(len(edges) - 1, int)  # dots of the sets before, in each pile
    for index, (name, data) in enumerate(checked.items()):
        one = known_look(name) or Look(name, f"C{index}", "o")
        shown = {"color": one.colour, "label": one.label or None, "ax": ax, "legend": False}
        if len(together) > FEW:
            seaborn.histplot(x=data, bins=edges.tolist(), element="step", alpha=0.35, linewidth=1, **shown)
            continue
        place = np.clip(np.searchsorted(edges, np.sort(data), "right") - 1, 0, len(below) - 1)
        height = below[place] + np.arange(len(place)) - np.searchsorted(place, place) + 1
        below += np.bincount(place, minlength=len(below))
        seaborn.scatterplot(x=np.sort(data), y=height, marker=one.marker, s=22, linewidth=0, **shown)
    if len(together) <= FEW:
        ax.set(xlim=(edges[0], edges[-1]), ylim=(0, max(3, below.max()) + 0.7))
    if reference is not None:
        draw_reference(ax, reference, f"{reference:g}" if reference_label is None else reference_label, upright=True)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return ax


@style()
def draw_scatter(ax: Axes, x: Vector, y: Vector, *, xlabel: str, ylabel: str, label: str | None = None) -> Axes:
    """Draw pairs of values as dots, fainter and smaller the more there are.

    Parameters
    ----------
    ax : Axes
    x, y : float [n]
    xlabel, ylabel : str
    label : str, optional
        For `draw_legend`.

    Returns
    -------
    ax : Axes

    Raises
    ------
    ValueError
        On lengths that differ or values that are not finite.
    """
    x = check_vector(x, "x")
    y = check_vector(y, "y", length=len(x))
    many = len(x) > 500
    # Thousands of dots as shapes would make a PDF of megabytes: they become one picture inside it.
    ax.scatter(x, y, s=4 if many else 10, alpha=0.25 if many else 0.7, linewidths=0, rasterized=many, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


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
        Names of columns and rows, turned or smaller where they do not fit; of numbers only every n-th is written then.
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
    import seaborn  # as in draw_histogram

    matrix = check_map(matrix, "matrix")
    check_limits(vmin, vmax)
    rows, cols = matrix.shape
    check_count(xlabels, "xlabels", cols)
    check_count(ylabels, "ylabels", rows)
    width, height = axes_points(ax)
    written = bool(width / cols > 20 and height / rows > 11)
    seaborn.heatmap(
        matrix, vmin=vmin, vmax=vmax, cmap=cmap, square=True, rasterized=True, ax=ax,
        annot=written, fmt=".2f", annot_kws={"fontsize": 6.5}, xticklabels=False, yticklabels=False,
        cbar_kws={"label": label, "aspect": 18, "pad": 0.02, "fraction": 0.05},
    )  # fmt: skip
    ax.set_facecolor(LIGHT_GREY)
    _name_cells(ax, list(xlabels), width / cols, upright=True)
    _name_cells(ax, list(ylabels), height / rows, upright=False)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def _name_cells(ax: Axes, names: list[str], room: float, *, upright: bool) -> None:
    """Name the columns or rows: all of them, turned or smaller where they do not fit; of numbers only every n-th."""
    numbers = all(name.lstrip("-").isdigit() for name in names)
    widest = max(map(label_width, names)) + 4 if upright else 11.0
    turned = upright and not numbers and widest > room
    every = max(1, int(np.ceil(widest / room))) if numbers else 1
    size = 8.0 if numbers or not (turned or not upright) else float(np.clip(0.85 * room, 5, 8))
    (ax.set_xticks if upright else ax.set_yticks)(
        np.arange(0, len(names), every) + 0.5, names[::every], rotation=90 if turned else 0, fontsize=size,
        parse_math=False,
    )  # fmt: skip
