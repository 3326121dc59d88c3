"""Estimates with their intervals, by name, along a curve, and as frontiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .checks import check_bracket, check_count, check_vector
from .curves import draw_line_band
from .style import GREY, LIGHT_GREY, MARKERS, style

if TYPE_CHECKING:
    from visionpulse_analysis.metrics.estimate import Estimate
    from visionpulse_analysis.metrics.nulls import Null

Vector = Sequence[float] | np.ndarray


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
    null_low: Vector | None = None,
    null_high: Vector | None = None,
    xlabel: str = "",
    null_label: str = "null",
) -> Axes:
    """Draw estimates as points with their intervals, one name per row, the first on top.

    Parameters
    ----------
    ax : Axes
    names : sequence of str [item]
    estimate, low, high : float [item]
        The points and the ends of their intervals.
    reference : float, optional
        A dashed upright line, for example 0 for differences.
    null_low, null_high : float [item], optional
        The band expected if there were nothing to find, a grey bar in each row.
    xlabel : str
        What is estimated, with its unit.
    null_label : str
        Name of the grey bars for `draw_legend`.

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
        ax.axvline(reference, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    ax.errorbar(
        estimate,
        row,
        xerr=[estimate - low, high - estimate],
        fmt="o",
        color="C0",
        markersize=4,
        linewidth=1.2,
    )
    ax.use_sticky_edges = False  # else the null bars end at the frame
    ax.set_yticks(row, list(names), parse_math=False)
    ax.set(ylim=(len(estimate) - 0.4, -0.6), xlabel=xlabel)
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

    Parameters
    ----------
    ax : Axes
        Its x axis becomes logarithmic, in percent.
    arms : mapping of name to (retention, estimate, low, high), each float [budget]
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
        On no arms or more than seven, lengths that differ, retention outside (0, 1], or an estimate outside
        its interval.
    """
    if not 1 <= len(arms) <= len(MARKERS):
        raise ValueError(f"{len(arms)} arms, expected 1 to {len(MARKERS)}: more cannot be told apart")
    lines = {}
    for name, (retention, estimate, low, high) in arms.items():
        x = check_vector(retention, f"retention of {name!r}", low=1e-6, high=1)
        y = check_vector(estimate, f"estimate of {name!r}", length=len(x))
        ends = [check_vector(end, f"interval of {name!r}", length=len(x)) for end in (low, high)]
        check_bracket(y, *ends)
        order = np.argsort(x, kind="stable")
        lines[name] = (x[order], y[order], ends[0][order], ends[1][order])
    if dense is not None:
        ax.axhline(dense, color=GREY, linewidth=0.8, linestyle="--", zorder=1, label="dense")
    for marker, (name, (x, y, low, high)) in zip(MARKERS, lines.items(), strict=False):
        ax.errorbar(
            x,
            y,
            yerr=[y - low, high - y],
            label=name,
            marker=marker,
            linewidth=1,
            elinewidth=0.8,
            clip_on=False,
        )
    smallest = min(x.min() for x, *_ in lines.values())
    ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    ax.set(xscale="log", xlim=(smallest * 0.85, 1.12), xlabel="patches kept (mean over steps, %)", ylabel=ylabel)
    ax.set_xticks([tick for tick in ticks if tick >= smallest * 0.85])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    if ylim is not None:
        ax.set_ylim(*ylim)
    return ax
