"""The figures of the three stages, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.three_stages.measure import PLACES, ThreeStages
from visionpulse_analysis.studies.three_stages.report import WITHDRAWN

LEAST = 1e-7  # nats: smaller divergences are not drawn


def stages_page(stages: ThreeStages, threshold: float = WITHDRAWN) -> Figure:
    """Make the headline: six measures by layer, each at the end of the prompt and at the most visual step."""
    fig, axes = figures.new_figure(figures.DOUBLE, 4.6, 2, 3)
    draw_lens(axes[0, 0], stages)
    draw_sinks(axes[0, 1], stages)
    draw_cosines(axes[0, 2], stages)
    draw_divergence(axes[1, 0], stages, "window", f"first of {stages.width} layers\nthat skip the image")
    draw_divergence(axes[1, 1], stages, "withdrawn", "image withdrawn\nfrom layer", threshold)
    draw_divergence(axes[1, 2], stages, "frozen", "patches frozen\nin layer")
    return figures.finish(fig, axes, "d to f: KL(changed || dense).", marks="bands", legend=True)


def draw_lens(ax: Axes, stages: ThreeStages) -> Axes:
    """Draw in what share of the samples the logit lens already reads the final word; the last point is the output."""
    _draw_places(ax, stages, "lens_right")
    ax.set(xlabel="layer entered", ylabel="final word read (share)", ylim=(0, 1.04))
    return ax


def draw_sinks(ax: Axes, stages: ThreeStages) -> Axes:
    """Draw the value norm of the most attended patches over that of all."""
    _draw_places(ax, stages, "sink_ratio")
    figures.draw_reference(ax, 1, "as all patches (b)")
    ax.set(xlabel="layer", ylabel="value norm, sinks / all")
    return ax


def draw_cosines(ax: Axes, stages: ThreeStages, threshold: float = 0.995) -> Axes:
    """Draw how far the most influential patch turns the attention output; dashed: VisiPruner's test of a layer."""
    _draw_places(ax, stages, "cosine")
    figures.draw_reference(ax, threshold, "VisiPruner's test (c)")
    ax.set(xlabel="layer", ylabel="least cosine")
    return ax


def draw_divergence(ax: Axes, stages: ThreeStages, name: str, xlabel: str, threshold: float | None = None) -> Axes:
    """Draw what a change does to the next token, from `LEAST` to the power of ten above all of it.

    Smaller ones are hollow triangles on the floor of the panel.
    """
    curves = []
    for place, label in enumerate(PLACES):
        curve = stages.curve(name, place)
        curves += curve
        # The floor is as low as a line is drawn: below it a series would be in the legend and not in the panel.
        figures.draw_curve(ax, range(len(curve)), [_at_least(one) for one in curve], label)
        below = [layer for layer, one in enumerate(curve) if one.value < LEAST]
        look = {"color": f"C{place}", "markerfacecolor": "white", "clip_on": False, "zorder": 4, "linestyle": ""}
        beside = 0.12 * (2 * place - 1)  # two series on the floor are both seen
        if below:
            ax.plot(np.array(below) + beside, [LEAST] * len(below), marker="v", **look)
            ax.plot([], [], "v", color=GREY, markerfacecolor="white", label="below 1e-7 nats")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    most = np.nanmax([threshold or LEAST, *(end for one in curves for end in (one.value, one.high))])
    top = max(100 * LEAST, 10.0 ** np.ceil(np.log10(most)))
    if threshold is not None:
        figures.draw_reference(ax, threshold, "VTW's bound (e)")
    ax.set_yscale("log", nonpositive="clip")
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=xlabel, ylabel="KL (nats)", ylim=(LEAST, top))
    return ax


def _at_least(one: Estimate) -> Estimate:
    return replace(one, **{end: max(getattr(one, end), LEAST) for end in ("value", "low", "high")})


def _draw_places(ax: Axes, stages: ThreeStages, name: str) -> None:
    for place, label in enumerate(PLACES):
        curve = stages.curve(name, place)
        figures.draw_curve(ax, list(range(len(curve))), curve, label)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
