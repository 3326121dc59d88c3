"""Figures and tables of the frontier, and of one sample step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.stored_traces import picture_of
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.frontier.measure import Frontier, Point, advantage
from visionpulse_analysis.studies.shared.divergence import Comparison, Divergences, draw_strips, strips_height
from visionpulse_analysis.studies.shared.intervals import draw_curve, draw_named, ends
from visionpulse_analysis.studies.trace_length.report import scaled, show
from visionpulse_analysis.traces import Trace


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
    height, width = picture_of(pruned).shape[:2]
    picture = (DOUBLE / len(steps) - 0.08) * height / width + 0.45
    fig, (top, middle, *strips) = figures.new_page(DOUBLE, [picture, 2.5, *strips_height(comparison)])
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
    curve.set_ylabel("mass at anchor")
    draw_strips(strips, comparison)
    return fig


def _line(points: list[Point], intervals: list[Estimate]) -> tuple[list[float], list[float], list[float], list[float]]:
    """One arm of `draw_frontier`: retention, estimate, low, high; a missing interval closes on its point.

    Points without an estimate, such as the change of length where no pair ended, are left out.
    """
    known = [(p.retention, i) for p, i in zip(points, intervals, strict=True) if np.isfinite(i.value)]
    estimate, low, high = ends([i for _, i in known])
    return [retention for retention, _ in known], estimate.tolist(), low.tolist(), high.tolist()


def frontier_page(frontier: Frontier, groups: Mapping[str, Mapping[str, Pruner]]) -> Figure:
    """Draw accuracy (where it is known), the change of length and what was cut off against retention, by selection.

    Lengths are paired with dense, over the pairs that both ended; a line has no point where none did.
    """
    points = {label: list(frontier.group(group).values()) for label, group in groups.items()}
    known, dense_cut = frontier.dense.accuracy, frontier.dense.change.cut_off.dense.value
    length = {label: _line(ps, [scaled(p.change.length) for p in ps]) for label, ps in points.items()}
    cut = {label: _line(ps, [p.change.cut_off.arm for p in ps]) for label, ps in points.items()}
    panels: dict[str, tuple[dict, float, tuple[float, float] | None]] = {}
    if known is not None:
        accuracy = {label: _line(ps, [p.accuracy for p in ps if p.accuracy]) for label, ps in points.items()}
        panels["accuracy"] = (accuracy, known.value, (0.0, 1.0))
    panels["change of length, both ended (%)"] = ({n: line for n, line in length.items() if line[0]}, 0.0, None)
    panels["traces cut off"] = (cut, dense_cut, (0.0, 1.0))
    panels = {ylabel: panel for ylabel, panel in panels.items() if panel[0]}
    fig, axes = figures.new_figure(DOUBLE, 2.7, 1, len(panels))
    for ax, (ylabel, (lines, dense, ylim)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        figures.draw_frontier(ax, lines, dense=dense, ylabel=ylabel, ylim=ylim)
    figures.draw_legend(list(np.atleast_1d(axes)))
    return fig


def anchor_figure(frontier: Frontier, anchors: Mapping[str, Mapping[int, tuple[str, Pruner]]], default: int) -> Figure:
    """Draw accuracy (where it is known), length and what was cut off when the same share is kept from another layer on.

    Lengths are of the traces whose dense one ended as well. The default anchor is marked.
    """
    values: dict[str, Callable[[Point], Any]] = {}
    if frontier.dense.accuracy is not None:
        values["accuracy"] = lambda point: point.accuracy
    values["tokens, both ended"] = lambda point: point.change.arm_length
    values["traces cut off"] = lambda point: point.change.cut_off.arm
    fig, axes = figures.new_figure(DOUBLE, 2.4, 1, len(values))
    layers = [min(map(min, anchors.values())), max(map(max, anchors.values()))]
    for ax, (ylabel, value) in zip(np.atleast_1d(axes), values.items(), strict=True):
        for label, by_layer in anchors.items():
            found = {layer: value(frontier.points[name]) for layer, (name, _) in by_layer.items()}
            defined = {layer: interval for layer, interval in found.items() if np.isfinite(interval.value)}
            if defined:
                draw_curve(ax, list(defined), list(defined.values()), label)
        dense = value(frontier.dense).value
        if np.isfinite(dense):
            figures.draw_line_band(ax, layers, [dense, dense], label="dense", colour="#8c8c8c", dashed=True)
        ax.axvline(default, color="#8c8c8c", linewidth=0.6)
        ax.set(xlabel="pruned from this layer on", ylabel=ylabel)
        ax.set_ylim(0, None if ylabel.startswith("tokens") else 1.02)
    figures.draw_legend(list(np.atleast_1d(axes)))
    return fig


def knob_figure(frontier: Frontier, plain: str, knobs: Mapping[str, Pruner]) -> Figure:
    """Draw the knobs and the plain pruner at the same budget against dense: accuracy, length, and what was cut off."""
    points = {f"plain, {plain.rsplit(' ', 2)[-2]} %": frontier.points[plain], **frontier.group(knobs)}
    panels = {"length, both ended (%)": {n: scaled(p.change.length) for n, p in points.items()}}
    scored = {n: p.change.truth for n, p in points.items()}
    if frontier.dense.accuracy is not None:
        panels["accuracy (points)"] = {n: scaled(truth.change) for n, truth in scored.items() if truth}
    panels["cut off (points)"] = {n: scaled(p.change.cut_off.change) for n, p in points.items()}
    # Rows are shared: a panel in which a row has no value, because no pair ended, is left out.
    panels = {label: row for label, row in panels.items() if all(np.isfinite(one.value) for one in row.values())}
    fig, axes = figures.new_figure(DOUBLE, 0.24 * len(points) + 0.6, 1, len(panels), sharey=True)
    for ax, (label, intervals) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        draw_named(ax, intervals, reference=0, xlabel=f"change: {label}")
    return fig


def divergence_figure(found: Divergences) -> Figure:
    """Draw at which step pruned traces leave the dense ones, and at what kind of token where that is known."""
    fig, axes = figures.new_figure(DOUBLE, 2.0, 1, 2 if found.at_kind else 1)
    first, *rest = np.atleast_1d(axes)
    if not len(found.steps):
        first.set(xlabel="first step that differs", ylabel="samples", xticks=[], yticks=[])
        with figures.style():
            first.set_title("no pruned trace differs from its dense one")
        return fig
    # One bin per step as long as that can be read.
    edges = np.arange(-0.5, found.steps.max() + 1.5, max(1, found.steps.max() // 30))
    edges = np.append(edges, found.steps.max() + 0.5) if edges[-1] < found.steps.max() else edges
    figures.draw_histogram(first, found.steps, edges, xlabel="first step that differs", ylabel="samples")
    for ax in rest:
        none = np.zeros(len(found.at_kind))
        base = np.array([found.all_kinds.get(kind, 0.0) for kind in found.at_kind])
        draw_named(
            ax,
            found.at_kind,
            null_low=none,
            null_high=base,
            null_label="share among all tokens",
            xlabel="share of first differences",
        )
        figures.draw_legend(ax)
    return fig


def table(points: Mapping[str, Point]) -> pd.DataFrame:
    """One row per arm."""
    rows = {}
    for name, p in points.items():
        rows[name] = {
            "kept": f"{100 * p.retention:.1f} %",
            "tokens, both ended": show(p.change.arm_length, 1, "", sign=False),
            "length against dense": show(p.change.length),
            "cut off": f"{p.change.cut_off.n_arm} of {p.change.n_pairs}",
            "overlap of consecutive sets": f"{p.overlap:.2f}",
        }
        if p.accuracy is not None:
            rows[name] |= {"accuracy, %": show(p.accuracy, unit="", sign=False)}
    return pd.DataFrame.from_dict(rows, orient="index")


def advantage_table(frontier: Frontier, budgets: list[float], over: list[str]) -> pd.DataFrame:
    """Accuracy of VisionPulse minus that of other selections at equal retention, in points."""
    return pd.DataFrame(
        {
            f"{100 * budget:g} % kept": {
                f"VisionPulse minus {other}": show(
                    advantage(frontier, f"VisionPulse {100 * budget:g} %", f"{other} {100 * budget:g} %"),
                    unit=" points",
                )
                for other in over
            }
            for budget in budgets
        }
    )
