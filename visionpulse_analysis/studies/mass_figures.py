"""The figures of mass and usage, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import ACCENT
from visionpulse_analysis.studies.drawing import draw_named
from visionpulse_analysis.studies.mass_usage import CAUSAL, SHAPES, MassUsage, Relation


def correlations_page(result: MassUsage) -> Figure:
    """Make the headline: r of mass and usage, counts above with their null, below what does not depend on scale."""
    counts, scale_free = result.paper + result.multiples, result.shapes + result.causal
    heights = [0.19 * len(part) + 0.75 for part in (counts, scale_free)]
    fig, axes = figures.new_figure(figures.DOUBLE, sum(heights), 2, 2, height_ratios=heights, sharex=True)
    for column, kind in enumerate(("pooled", "within")):
        _draw_relations(axes[0, column], counts, kind, null=True)
        _draw_relations(axes[1, column], scale_free, kind, null=False)
        axes[1, column].set_xlabel(f"Pearson r with mass, {'all steps' if column == 0 else 'within samples'}")
    for ax in axes[:, 1]:
        ax.tick_params(axis="y", labelleft=False)  # the same rows as on the left
    for letter, ax in zip("abcd", axes.flat, strict=True):
        ax.set_title(letter, loc="left", fontweight="bold")
    figures.draw_legend(axes)
    return fig


def scatter_page(result: MassUsage, names: Sequence[str] = ("above 1/n", SHAPES[0], CAUSAL[0])) -> Figure:
    """Draw three kinds of usage against the mass, one dot per step; those that were not measured are left out."""
    known = [name for name in names if name in result.columns]
    fig, axes = figures.new_figure(figures.DOUBLE, 2.1, 1, len(known))
    for ax, name in zip(np.atleast_1d(axes), known, strict=True):
        x, y = result.columns["mass"], result.columns[name]
        seen = np.isfinite(y)
        label = f"patches {name}" if name.startswith("above") else name
        figures.draw_scatter(ax, x[seen], y[seen], xlabel="visual attention mass", ylabel=label)
        ax.set(xlim=(0, 1), ylim=(0, None))
    return fig


def counts_page(result: MassUsage) -> Figure:
    """Draw the paper's picture: the active count of every step against its mass, a panel and an r for each threshold.

    The line is the least-squares fit; r is over all steps of all samples, its interval resamples samples; below it what
    r becomes when the steps of a sample keep their masses and exchange their shapes.
    """
    mass, columns = result.columns["mass"], min(4, len(result.paper))
    lines = -(-len(result.paper) // columns)
    fig, axes = figures.new_figure(figures.DOUBLE, 2.3 * lines, lines, columns, sharex=True)
    panels = np.atleast_1d(axes).ravel()
    for ax in panels[len(result.paper) :]:
        ax.set_visible(False)
    for ax, relation, threshold in zip(panels, result.paper, result.thresholds, strict=False):
        count, r = result.columns[relation.name], relation.pooled
        figures.draw_scatter(ax, mass, count, xlabel="visual attention mass", ylabel=f"patches above {threshold:g}")
        known = np.isfinite(r.estimate)
        if known:
            ends = np.array([mass.min(), mass.max()])
            ax.plot(ends, np.polyval(np.polyfit(mass, count, 1), ends), color=ACCENT, linewidth=1)
        bounds, null = f" [{r.low:.2f}, {r.high:.2f}]" if np.isfinite(r.low) else "", relation.pooled_null
        band = f"\nnull {null.low:.2f} to {null.high:.2f}" if null is not None and np.isfinite(null.low) else ""
        ax.set_title(f"r = {r.estimate:.2f}{bounds}{band}" if known else "r undefined", fontsize=7)
        ax.set_ylim(0, None)
    return fig


def _draw_relations(ax: Axes, relations: list[Relation], kind: str, *, null: bool) -> None:
    named = {relation.name: getattr(relation, kind) for relation in relations}
    bands = [getattr(relation, f"{kind}_null") for relation in relations] if null else []
    draw_named(ax, named, bands, reference=0.0, null_label="same masses, shapes exchanged")
    ax.set_xlim(-1, 1)
