"""The figures of the layers, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.layers.anchors import Anchors
from visionpulse_analysis.studies.layers.measure import LayerMaps


def similarity_figure(maps: LayerMaps) -> Figure:
    """Draw the paper's picture: how alike the layers' attention over the image is."""
    names = [str(layer) for layer in maps.layers]
    fig, ax = figures.new_figure(figures.SINGLE, 2.7)
    figures.draw_matrix(
        ax, maps.similarity, names, names, vmin=0, vmax=1, label="cosine", xlabel="layer", ylabel="layer"
    )
    figures.draw_caption(fig, _mean_of(maps))
    return fig


def mass_figure(maps: LayerMaps) -> Figure:
    """Draw the image mass by recorded layer, for each kind of token where these are known, and by step."""
    names = [str(layer) for layer in maps.recorded]
    parts = [*([(maps.kinds, maps.mass_by_kind, "token")] if maps.kinds else [])]
    parts.append(([str(t) for t in range(len(maps.mass_by_step))], maps.mass_by_step, "step"))
    fig, axes = figures.new_figure(figures.DOUBLE, 2.7, 1, len(parts))
    for ax, (rows, values, ylabel) in zip(np.atleast_1d(axes), parts, strict=True):
        figures.draw_matrix(
            ax,
            values,
            names,
            rows,
            vmin=0,
            vmax=1,
            label="visual attention mass",
            xlabel="layer",
            ylabel=ylabel,
        )
        ax.set_aspect("auto")
    return figures.finish(fig, axes, _mean_of(maps))


def _mean_of(maps: LayerMaps) -> str:
    return f"Means over n = {maps.mass[0].n_clusters:,} {maps.mass[0].unit}s."


def anchors_page(anchors: Anchors, horizon: dict[str, list[Estimate]] | None = None) -> Figure:
    """Make the headline: what pruning at each layer does, what it is worth, and where the image is read."""
    fig, axes = figures.new_figure(figures.DOUBLE, 5.2, 2, 2)
    draw_changes(axes[0, 0], anchors)
    draw_needed(axes[0, 1], anchors)
    draw_overlap(axes[1, 0], anchors)
    if horizon is None:
        axes[1, 1].set_visible(False)
    else:
        draw_horizon(axes[1, 1], horizon)
    for ax in axes.flat:
        if ax.get_visible():
            ax.axvline(anchors.default, color=GREY, linewidth=0.8, linestyle=":", zorder=0, label="default anchor")
            figures.draw_legend(ax)
    return figures.finish(fig, axes, marks="bands")


def draw_changes(ax: Axes, anchors: Anchors) -> Axes:
    """Draw how many tokens change when a step sees few patches from a layer on, chosen there, at random, or none."""
    for name, label in (("top", "chosen there"), ("random", "random"), ("none", "no patch")):
        figures.draw_curve(ax, anchors.layers, getattr(anchors, name), label)
    ax.set(xlabel="pruned from layer", ylabel="tokens changed (share)", ylim=(0, 1.02))
    return ax


def draw_needed(ax: Axes, anchors: Anchors) -> Axes:
    """Draw the smallest share of the patches that leaves the next-token distribution as it was."""
    figures.draw_curve(ax, anchors.layers, anchors.needed, f"within {anchors.level:g} nats of dense")
    ax.set(xlabel="pruned from layer", ylabel="patches needed (share)", ylim=(0, 1))
    return ax


def draw_overlap(ax: Axes, anchors: Anchors) -> Axes:
    """Draw how much of the relevant set each layer's top set holds, above what a random set holds."""
    figures.draw_curve(ax, anchors.layers, anchors.overlap, "of the layer's top set")
    level = np.full(len(anchors.layers), anchors.overlap_null)
    figures.draw_line_band(ax, anchors.layers, level, label="of a random set", colour=GREY, dashed=True)
    ax.set(xlabel="layer", ylabel="relevant patches held (share)", ylim=(0, None))
    return ax


def draw_horizon(ax: Axes, horizon: dict[str, list[Estimate]]) -> Axes:
    """Draw the accuracy of visual tokens when text does not see the image from a layer on; the last point sees all."""
    for kind, accuracy in horizon.items():
        figures.draw_curve(ax, range(len(accuracy)), accuracy, kind)
    ax.set(xlabel="image cut off from layer", ylabel="accuracy (true trace given)", ylim=(0, 1.02))
    return ax
