"""Figures of a finished sweep, by pruner."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.shared.arms import DENSE
from visionpulse_analysis.studies.sweep.measure import ArmResult


def pruners_page(results: Mapping[str, ArmResult], dense: str = DENSE) -> Figure:
    """Draw accuracy (where answers are known), length of the traces that ended and, where some were not, cut-offs.

    One row per pruner; dashed: dense.
    """
    panels: dict[str, dict[str, Estimate]] = {}
    known = {name: 100 * arm.accuracy for name, arm in results.items() if arm.accuracy is not None}
    if known:
        panels["accuracy (%)"] = known
    if any(arm.n_cut_off < arm.n for arm in results.values()):
        panels["tokens of traces that ended"] = {name: arm.length for name, arm in results.items()}
    if any(arm.n_cut_off for arm in results.values()):
        panels["cut off (%)"] = {name: 100 * arm.cut_off for name, arm in results.items()}
    fig, axes = figures.new_figure(DOUBLE, 0.26 * len(results) + 0.7, 1, len(panels), sharey=True)
    for ax, (label, intervals) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        reference = intervals[dense].value if dense in intervals else None
        named = {"reference_label": dense, "xlabel": label, "methods": True}
        figures.draw_estimates(ax, intervals, reference=reference, **named)
    shown = np.atleast_1d(axes)
    return figures.finish(fig, shown, legend=True)


def steps_page(panels: Mapping[str, Mapping[str, tuple[np.ndarray, list[Estimate]]]]) -> Figure:
    """Draw curves over the steps, one line per pruner, one panel per y label."""
    fig, axes = figures.new_figure(DOUBLE, 2.6, 1, len(panels), sharex=True)
    for ax, (label, curves) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for place, (name, (steps, intervals)) in enumerate(curves.items()):
            # Each curve has its markers at other steps: where two run together, both are seen.
            every = place, max(len(curves), len(steps) // 8)
            figures.draw_curve(ax, steps.tolist(), intervals, name, colour=figures.look(name).colour, markevery=every)
        ax.set(xlabel="step", ylabel=label, ylim=(0, None))
    return figures.finish(fig, axes, marks="bands", legend=True)
