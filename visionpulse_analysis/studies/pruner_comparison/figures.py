"""The frontier of all pruners: a panel per family, every method named at its line, dense and VisionPulse behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, NullLocator

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import GREY, LIGHT_GREY, axes_points, style
from visionpulse_analysis.studies.frontier.measure import Point
from visionpulse_analysis.studies.pruner_comparison.measure import ADDED, OWN, PULSE, RIVALS, Comparison, all_rivals
from visionpulse_analysis.studies.shared.intervals import ends

ACCURACY, LENGTH, CUT_OFF = "accuracy (%)", "length, both ended (%)", "cut off (%)"
Value = Callable[[Point], Any]  # an interval
FAMILIES = (*dict.fromkeys(rival.family for rival in RIVALS.values() if rival.family != PULSE), ADDED)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, anew in each panel
AT_PREFILL, AT_STEPS = "o", "^"
COLUMNS, HEIGHT = 3, 1.4  # panels beside one another; inches of each
APART = 0.08  # how far the methods of a panel are moved apart, as a share of what they keep
NAME_SIZE = 7  # points


def frontier_figure(compared: Comparison) -> Figure:
    """Draw accuracy (where it is known), change of length and share cut off against the share kept, with intervals.

    One panel per family, and below one another the outcomes; dense and VisionPulse are behind every one. Lengths are
    over the pairs that both ended: no point where none did. Methods at the same share are moved apart sideways.
    """
    values: dict[str, Value] = {LENGTH: lambda point: point.change.length, CUT_OFF: lambda p: p.change.cut_off.arm}
    if compared.frontier.dense.accuracy is not None:
        values = {ACCURACY: lambda point: point.accuracy, **values}
    families = [f for f in FAMILIES if any(all_rivals()[label].family == f for label in compared.arms)]
    bands = -(-len(families) // COLUMNS)
    rows = bands * len(values)
    fig, axes = figures.new_figure(figures.DOUBLE, HEIGHT * rows + 0.3, rows, COLUMNS)
    by_family = np.reshape(axes, (bands, len(values), COLUMNS)).swapaxes(1, 2).reshape(bands * COLUMNS, len(values))
    for spare in by_family[len(families) :].flat:
        spare.set_axis_off()
    for place, (label, value) in enumerate(values.items()):
        panels = by_family[: len(families), place]
        for ax, family in zip(panels, families, strict=True):
            _draw_panel(ax, compared, family, value)
        low, high = min(ax.get_ylim()[0] for ax in panels), max(ax.get_ylim()[1] for ax in panels)
        for number, ax in enumerate(panels):
            ax.set_ylim((0, 104) if label == ACCURACY else (low, high))
            ax.set_ylabel("" if number % COLUMNS else label)
            ax.yaxis.set_major_locator(MaxNLocator(5))
    for family, column in zip(families, by_family, strict=False):
        column[-1].set_xlabel("patches kept (%)")
        with style():
            column[0].set_title(family, loc="left", fontweight="bold")
    _add_legend(by_family[0, 0], list(np.ravel(axes)))
    fig.draw_without_rendering()
    for ax in by_family[: len(families)].flat:
        _spread_names(ax)
    return fig


@style()
def _draw_panel(ax: Axes, compared: Comparison, family: str, value: Value) -> None:
    rivals, points = all_rivals(), compared.frontier.points
    dense = value(compared.frontier.dense).value
    ax.axhline(100 * dense if np.isfinite(dense) else 0, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    members = [label for label in compared.arms if rivals[label].family == family]
    behind = [label for label in compared.arms if rivals[label].family == PULSE]
    for label in [*behind, *members]:
        at = members.index(label) if label in members else None
        moved = 1.0 if at is None else 1 + APART * (at - (len(members) - 1) / 2)
        colour = LIGHT_GREY if at is None else COLOURS[at % len(COLOURS)]
        own = [name for name in compared.arms[label] if name.endswith(OWN)]
        matched = [name for name in compared.arms[label] if name not in own]
        for of_kind, hollow in ((matched, False), (own, True)):
            names = [name for name in of_kind if np.isfinite(value(points[name]).value)]
            if not names or (at is None and hollow):
                continue
            y, low, high = (100 * one for one in ends([value(points[name]) for name in names]))
            x = np.array([100 * compared.kept[name] * moved for name in names])
            drawn = ax.errorbar(
                x, y, yerr=[y - low, high - y], color=colour, elinewidth=0.7, capsize=0, linewidth=1, gid=label,
                marker=AT_PREFILL if rivals[label].at_prefill else AT_STEPS, linestyle="" if hollow else "-",
                markerfacecolor="white" if hollow else colour, zorder=1.5 if at is None else 3,
            )  # fmt: skip
            drawn.lines[0].set_gid(label)
            if at is not None and (not hollow or not matched):
                last = int(np.argmax(x))
                _name(ax, label, colour, (x[last], y[last]))
    # Linear near zero, because a pruner may leave nothing.
    lowest = min(100 * kept for kept in compared.kept.values())
    ax.set_xscale("symlog", linthresh=2, linscale=0.3)
    ticks = [0, 5, 10, 25, 50, 100]
    ax.set_xticks(ticks, ["" if tick == 50 else str(tick) for tick in ticks])  # else it runs into 100
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(-0.4 if lowest < 2 else 2.3, 130)


def _name(ax: Axes, label: str, colour: str, point: tuple[float, float]) -> None:
    """Write a name at the right of the panel, with a line to its last point."""
    with style():
        ax.annotate(
            label.replace(" | ", " |\n").replace(", ", ",\n"), point, (1.06, 0.5), textcoords="axes fraction",
            color=colour, fontsize=NAME_SIZE, va="center", parse_math=False, annotation_clip=False, linespacing=0.9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread_names(ax: Axes) -> None:
    """Put every name at the height of its point, or as near as the others allow."""
    names, height = [text for text in ax.texts if isinstance(text, Annotation)], axes_points(ax)[1]
    wanted = [ax.transAxes.inverted().transform(ax.transData.transform(name.xy))[1] for name in names]
    sizes = [(name.get_text().count("\n") + 1) * NAME_SIZE * 1.15 / height for name in names]
    order = np.argsort(wanted, kind="stable")
    at = spread([wanted[i] for i in order], [sizes[i] for i in order])
    for place, y in zip(order, at, strict=True):
        names[place].set_position((1.06, y))


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Middles of things that lie in 0..1 one above the other without touching, near where they should be.

    wanted : rising. sizes : the height of each.
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


def _add_legend(ax: Axes, axes: list[Axes]) -> None:
    ax.plot([], [], color=GREY, linewidth=0.8, linestyle="--", label="dense")
    ax.plot([], [], color=LIGHT_GREY, marker=AT_STEPS, label="VisionPulse")
    for marker, label in ((AT_PREFILL, "settled at prefill"), (AT_STEPS, "settled at steps")):
        ax.plot([], [], marker=marker, color=GREY, linestyle="", label=label)
    ax.plot([], [], marker="o", color=GREY, markerfacecolor="white", linestyle="", label=OWN)
    figures.draw_legend(axes)
