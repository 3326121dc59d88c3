"""The figures of the heads, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures.methods import Look, known_look
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.heads.measure import ARMS, CRITERIA, Head, Heads
from visionpulse_analysis.traces import Trace

SIGNED = "RdBu_r"


def heads_page(study: Heads) -> Figure:
    """Make the headline: which heads look, when, at what, and whether those chosen would do for pruning."""
    fig, axes = figures.new_panels(figures.DOUBLE, [2.5, 2.5], 3)
    difference = _largest(study.when)
    draw_heads(axes[0, 0], study, study.mass, "image mass", 0, 1)
    draw_heads(axes[0, 1], study, study.when, "image mass,\nreading minus other steps", -difference, difference, SIGNED)
    draw_heads(axes[0, 2], study, study.entropy, "entropy over patches, nats", 0, _largest(study.entropy))
    draw_heads(axes[1, 0], study, study.agreement, "relevant patches held (share)", 0, 1)
    lifts = {head: claim.estimate for head, claim in study.found.items()}
    follows = _largest(lifts)
    draw_heads(axes[1, 1], study, lifts, "relevant patches held,\nthis step's minus others'", -follows, follows, SIGNED)
    for head, claim in study.found.items():
        if claim.above:  # in the corner, beside the number
            place = study.heads.index(head[1]) + 0.14, study.layers.index(head[0]) + 0.16
            axes[1, 1].plot(*place, "o", markersize=2.5, color="black")
    draw_pruned(axes[1, 2], study)
    figures.draw_legend(axes[1, 2])
    return figures.finish(fig, axes, "e: a dot where the head is shown to follow its step.", marks="bars in f")


def _largest(values: Mapping[Head, Estimate]) -> float:
    return max([0.01, *(abs(one.value) for one in values.values() if np.isfinite(one.value))])


def draw_heads(
    ax: Axes, study: Heads, values: Mapping[Head, Estimate], label: str, low: float, high: float, cmap: str = "magma"
) -> Axes:
    """Draw one number for each head, layers from top to bottom."""
    matrix = np.array([[values[layer, head].value for head in study.heads] for layer in study.layers])
    names = [str(head) for head in study.heads], [str(layer) for layer in study.layers]
    figures.draw_matrix(ax, matrix, *names, vmin=low, vmax=high, label=label, xlabel="head", ylabel="layer", cmap=cmap)
    ax.set_aspect("auto")
    return ax


def draw_pruned(ax: Axes, study: Heads) -> Axes:
    """Draw how many reading steps stay as they were when few patches stay visible, by who chose them."""
    x = np.arange(len(study.chosen))
    for number, arm in enumerate(ARMS):
        at = x + 0.18 * (number - 1.5)
        found = [study.pruned[head][arm] for head in study.chosen]
        value, low, high = (np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high"))
        low, high = np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high)
        look = known_look(arm) or Look(arm, f"C{number}", "o")
        bars = {"yerr": [value - low, high - value], "markersize": 3, "linewidth": 1, "color": look.colour}
        drawn = ax.errorbar(at, value, fmt=look.marker, label=look.label, **bars)
        drawn.lines[0].set_gid(look.label)
        figures.note_estimates(ax, found)
    ax.set_xticks(x, [f"layer {layer}\nhead {head}" for layer, head in study.chosen], fontsize=7)
    ax.set(ylim=(-0.02, 1.02), ylabel=f"share within {study.level:g} nats")
    return ax


def maps_page(trace: Trace) -> Figure:
    """Draw what every head of every layer looks at, at the step of a trace with the most image mass."""
    step = int(trace.mass.mean(("layer", "head")).values.argmax())
    attention = trace.attention[step].values
    frame = np.asarray(trace.grid.frames)[0, :2].tolist()
    maps = np.array([[trace.grid.to_map(head, *frame) for head in layer] for layer in attention])
    across = min(0.8, (figures.DOUBLE - 1.5) / maps.shape[1])
    height = min(8.0, 0.9 + len(maps) * across * maps.shape[2] / maps.shape[3])
    width = min(figures.DOUBLE, max(figures.SINGLE, 1.5 + across * maps.shape[1]))
    fig, ax = figures.new_figure(width, height)
    figures.draw_map_grid(ax, maps, trace.layers, trace.heads or [])
    ax.set_title(f"step {step}: {figures.token_label(trace.tokens[step])}", loc="left", parse_math=False)
    return fig


def criteria_page(study: Heads) -> Figure:
    """Draw how much of the relevant set the best head by each criterion holds, on the half that did not choose it."""
    fig, ax = figures.new_figure(figures.SINGLE, 2.2)
    named = {f"{by}: {study.best[by][0][0]}.{study.best[by][0][1]}": study.best[by][1] for by in CRITERIA}
    level = {"reference": study.chance, "reference_label": "a random set"}
    figures.draw_estimates(ax, named, xlabel="relevant patches held (share)", **level)
    ax.set_xlim(0, 1)
    figures.draw_legend(ax)
    figures.draw_caption(fig)
    return fig
