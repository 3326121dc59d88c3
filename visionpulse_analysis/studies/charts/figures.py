"""The figures of the charts, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.studies.charts.measure import ASKED, Charts
from visionpulse_analysis.studies.mass_and_usage.causal_usage import LATER
from visionpulse_analysis.studies.shared.arms import DENSE

MOST_KINDS = 9


def charts_page(study: Charts) -> Figure:
    """Make the headline: what the world has of what a fair one needs, and accuracy and length of every arm."""
    fig, axes = figures.new_panels(figures.DOUBLE, [2.9, 2.5], 2, width_ratios=[1.2, 1])
    panels = list(axes.flat)
    shares = {name: claim for name, claim in study.properties.items() if ASKED[name][0] <= 1}
    figures.draw_estimates(
        panels[0], {f"{name}\n(asked: {told(name)})": one.estimate for name, one in shares.items()}, xlabel="share"
    )
    panels[0].set_xlim(-0.02, 1.02)
    draw_horizon(panels[1], study)
    draw_needed(panels[2], study)
    draw_arms(panels[3], study)
    for ax in (panels[1], panels[3]):
        figures.draw_legend(ax)
    return figures.finish(fig, axes)


def told(name: str) -> str:
    """What a fair world has of a property: "at least 40 %", "at least 4"."""
    level, side = ASKED[name]
    return f"at {'least' if side == '>' else 'most'} " + (f"{100 * level:g} %" if level <= 1 else f"{level:g}")


def draw_horizon(ax: Axes, study: Charts) -> Axes:
    """Draw the accuracy of words by the layer from which text does not see the image; bands would hide one another."""
    for kind, curve in study.horizon.items():
        figures.draw_line_band(ax, range(len(curve)), [one.value for one in curve], label=kind)
    ax.set(xlabel="cut off from layer", ylabel="words predicted right", ylim=(0, 1.02))
    layers = len(next(iter(study.horizon.values())))
    ax.set_xticks(range(layers), [*map(str, range(layers - 1)), "all"])
    return ax


def draw_needed(ax: Axes, study: Charts) -> Axes:
    """Draw the quartiles of the patches needed by kind of word, the later layers' order, steps that need the image."""
    order = LATER if LATER in study.needed else next(iter(study.needed), "")
    kinds = list(study.needed.get(order, {}).items())[:MOST_KINDS]
    if not kinds:
        ax.text(0.5, 0.5, "no step needs the image", ha="center", va="center", transform=ax.transAxes)
        return ax
    quartiles = np.array([np.quantile(k, [0.25, 0.5, 0.75]) for _, k in kinds])
    names = [f"{kind} ({len(k)})" for kind, k in kinds]
    figures.draw_interval(ax, names, quartiles[:, 1], quartiles[:, 0], quartiles[:, 2])
    ax.set_xscale("log")
    most = max(4.0, quartiles.max())
    ticks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if k <= 1.5 * most]
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlabel=f"patches needed at most, {order}\n(quartiles; steps in brackets)", xlim=(0.9, 1.5 * most))
    return ax


def draw_arms(ax: Axes, study: Charts) -> Axes:
    """Draw the accuracy of every arm of the charts, with the share of patches it keeps; dense is a line."""
    changes = study.findings[0].arms.changes
    named = {
        f"{name} (kept {100 * one.retention:.1f} %)": one.truth.accuracy
        for name, one in changes.items()
        if one.truth is not None and name != DENSE
    }
    dense = changes[DENSE].truth
    level = np.nan if dense is None else dense.accuracy.value
    figures.draw_estimates(ax, named, reference=level, reference_label="dense", xlabel="accuracy")
    ax.set_xlim(-0.02, 1.02)
    return ax
