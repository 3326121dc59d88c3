"""Figures of the frontier, and of one sample step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.stored_traces import picture_of
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.figures.plots import ends
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.frontier.divergence import Comparison, draw_strips, strips_height
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, Change
from visionpulse_analysis.traces import Trace

NOTE = "Lengths: change against dense, of pairs that both ended. Arms at one share are moved apart."
Value = Callable[[Any], Any]  # of a Change, an Estimate; for accuracy only where answers are known


def steps_to_show(pruned: Trace, count: int = 6) -> list[int]:
    """Steps at which the pruner acts whose kept sets differ most from those shown before, in order.

    Starts with the first pruned step and adds the step farthest (by Jaccard index) from all chosen, so that the
    pictures show how the choice moves, not the same one six times.
    """
    kept = kept_of(pruned)
    chosen = [min(1, len(kept) - 1)]
    while len(chosen) < min(count, len(kept) - 1):
        both = (kept[:, None] & kept[None, chosen]).sum(-1)
        either = (kept[:, None] | kept[None, chosen]).sum(-1)
        closest = (both / np.maximum(either, 1)).max(axis=1)
        # Prefill, step 0, is never pruned; a step shown already is not shown again.
        closest[[0, *chosen]] = np.inf
        chosen.append(int(np.argmin(closest)))
    return sorted(chosen)


def kept_of(pruned: Trace) -> np.ndarray:
    """Visible patches, bool [step, patch]; raises ValueError for a dense trace."""
    if pruned.kept is None:
        raise ValueError("the trace is dense: nothing was dropped, so there is nothing to show step by step")
    return np.asarray(pruned.kept.values)


def mass_of(pruned: Trace) -> np.ndarray:
    """The mass that the pruner measured, float [step]; step 0, where none is measured, repeats step 1."""
    if pruned.pruner_mass is None:
        raise ValueError("the pruner of this trace measures no attention mass; use VisionPulse")
    seen = np.array(pruned.pruner_mass.values)
    seen[0] = seen[1] if len(seen) > 1 else 0.0
    return seen


def step_page(pruned: Trace, comparison: Comparison, steps: list[int]) -> Figure:
    """Draw one sample: kept patches of some steps, mass and budget over all, dense over pruned tokens."""
    kept, seen = kept_of(pruned), mass_of(pruned)
    picture = figures.picture_height(picture_of(pruned).shape, DOUBLE / len(steps) - 0.08, 2.5) + 0.45
    fig, (top, middle, *strips) = figures.new_page(DOUBLE, [picture, 2.8, *strips_height(comparison)])
    with figures.style():
        panels = np.atleast_1d(top.subplots(1, len(steps)))
        budget, curve = middle.subplots(2, 1, sharex=True, height_ratios=[0.6, 1])
        for ax, step in zip(panels, steps, strict=True):
            ax.set_title(figures.step_title(step, pruned.tokens[step]), parse_math=False)
    for ax, step in zip(panels, steps, strict=True):
        figures.draw_kept(ax, picture_of(pruned), pruned.grid.to_map(kept[step]))
    figures.draw_line_band(budget, np.arange(1, len(kept)), 100 * kept[1:].mean(axis=1))
    budget.set(ylim=(0, 115 * kept[1:].mean(axis=1).max()), ylabel="kept (%)")
    figures.draw_mass_curve(curve, seen, pruned.tokens, marked_steps=steps)
    curve.set_ylabel("mass at\nanchor")
    words = draw_strips(strips, comparison)
    if curve.get_legend_handles_labels()[1]:
        figures.draw_legend(curve)
    return figures.finish(fig, [list(panels), budget, curve, *words], f"n = 1 sample, {len(pruned):,} steps pruned.")


def frontier_page(measured: Arms, groups: Mapping[str, Mapping[str, Pruner]]) -> Figure:
    """Draw accuracy (where it is known), the change of length and what was cut off against retention, by selection.

    Lengths are paired with dense, over the pairs that both ended; a line has no point where none did.
    """
    dense = measured.changes[DENSE]
    panels: dict[str, tuple[Value, float, tuple[float, float] | None]] = {
        "length (%)": (lambda c: 100 * c.length, 0.0, None),
        "traces cut off": (lambda c: c.cut_off.arm, dense.cut_off.dense.value, None),
    }
    if dense.truth is not None:
        panels = {"accuracy": (lambda c: c.truth.accuracy, dense.truth.accuracy.value, (0.0, 1.0)), **panels}
    drawn = {}
    for ylabel, (value, level, ylim) in panels.items():
        lines = {label: _line([measured.changes[arm] for arm in group], value) for label, group in groups.items()}
        lines = {label: line for label, line in lines.items() if line[0]}
        if lines:
            drawn[ylabel] = lines, {"dense": level, "ylabel": ylabel, "ylim": ylim}
    fig, axes = figures.new_figure(DOUBLE, 2.7, 1, len(drawn))
    panels_drawn = np.atleast_1d(axes)
    for ax, (ylabel, (lines, options)) in zip(panels_drawn, drawn.items(), strict=True):
        figures.draw_frontier(ax, lines, **options)
        value = panels[ylabel][0]
        figures.note_estimates(ax, [value(measured.changes[arm]) for group in groups.values() for arm in group])
        if ylabel == "traces cut off":
            ax.set_ylim(-0.02 * ax.get_ylim()[1], None)
    return figures.finish(fig, panels_drawn, NOTE, legend=True)


def _line(changes: list[Change], value: Value) -> tuple[list[float], list[float], list[float], list[float]]:
    """One arm of `draw_frontier`: retention, estimate, low, high; a missing interval closes on its point.

    Arms without an estimate, such as the change of length where no pair ended, are left out.
    """
    known = [change for change in changes if np.isfinite(value(change).value)]
    estimate, low, high = ends([value(change) for change in known])
    return [change.retention for change in known], estimate.tolist(), low.tolist(), high.tolist()


def anchor_figure(measured: Arms, anchors: Mapping[str, Mapping[int, tuple[str, Pruner]]], default: int) -> Figure:
    """Draw accuracy (where it is known), length and what was cut off when the same share is kept from another layer on.

    Lengths are of the traces whose dense one ended as well. The default anchor is marked.
    """
    values: dict[str, Value] = {"accuracy": lambda c: c.truth.accuracy} if measured.known else {}
    values |= {"tokens, both ended": lambda c: c.arm_length, "traces cut off": lambda c: c.cut_off.arm}
    fig, axes = figures.new_figure(DOUBLE, 2.4, 1, len(values))
    for ax, (ylabel, value) in zip(np.atleast_1d(axes), values.items(), strict=True):
        for label, by_layer in anchors.items():
            found = {layer: value(measured.changes[name]) for layer, (name, _) in by_layer.items()}
            defined = {layer: interval for layer, interval in found.items() if np.isfinite(interval.value)}
            if defined:
                figures.draw_curve(ax, list(defined), list(defined.values()), label)
        dense = value(measured.changes[DENSE]).value
        if np.isfinite(dense):
            figures.draw_reference(ax, dense, DENSE)
        ax.axvline(default, color=GREY, linewidth=0.6, label="default anchor")
        ax.set(xlabel="pruned from this layer on", ylabel=ylabel)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_ylim(0, None if ylabel.startswith("tokens") else 1.02)
    return figures.finish(fig, axes, marks="bands", legend=True)


def knob_figure(measured: Arms, plain: str, knobs: Mapping[str, Pruner]) -> Figure:
    """Draw the knobs and the plain pruner at the same budget against dense: accuracy, length, and what was cut off."""
    changes = {f"plain, {plain.rsplit(' ', 2)[-2]} %": measured.changes[plain]}
    changes |= {name: measured.changes[name] for name in knobs}
    values: dict[str, Value] = {"length (%)": lambda c: c.length}
    values |= {"accuracy (points)": lambda c: c.truth.change} if measured.known else {}
    values |= {"cut off (points)": lambda c: c.cut_off.change}
    panels = {label: {name: 100 * value(c) for name, c in changes.items()} for label, value in values.items()}
    # Rows are shared: a panel in which a row has no value, because no pair ended, is left out.
    panels = {label: row for label, row in panels.items() if all(np.isfinite(one.value) for one in row.values())}
    fig, axes = figures.new_figure(DOUBLE, 0.24 * len(changes) + 1.0, 1, len(panels), sharey=True)
    for ax, (label, intervals) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        named = {f"VisionPulse, {name}": one for name, one in intervals.items()}
        figures.draw_estimates(ax, named, reference=0, reference_label=DENSE, xlabel=f"change: {label}")
    return figures.finish(fig, axes, legend=True)
