"""The figures of mass and usage, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import ACCENT
from visionpulse_analysis.studies.mass_and_usage.causal_usage import ANCHOR, LATER, ORDERS
from visionpulse_analysis.studies.mass_and_usage.measure import SHAPES, MassUsage, Relation, needed_name

NONE = "no correlation"
NULL = "null: shapes exchanged (a, b), masses exchanged among like steps (e, f)"


def correlations_page(result: MassUsage) -> Figure:
    """Make the headline: r of mass and usage. Counts with their null, what does not depend on scale, what is needed.

    The last is split into all steps and those that need the image, within samples both.
    """
    rows = [result.paper + result.multiples, result.shapes, *([result.needs] if result.needs else [])]
    heights = [0.19 * len(part) + 0.75 for part in rows]
    fig, axes = figures.new_figure(figures.DOUBLE, sum(heights), len(rows), 2, height_ratios=heights, sharex=True)
    for column, kind in enumerate(("pooled", "within")):
        _draw_relations(axes[0, column], rows[0], kind, null=True)
        _draw_relations(axes[1, column], result.shapes, kind, null=False)
        axes[1, column].set_xlabel(f"Pearson r with mass, {'all steps' if column == 0 else 'within samples'}")
        axes[1, column].tick_params(labelbottom=True)
    for column, (over, words) in enumerate(
        (("every", "all steps"), ("needing", "steps that need the image")) if result.needs else ()
    ):
        ax = axes[2, column]
        known = [need for need in result.needs if np.isfinite(getattr(need, over).value)]
        if not known:
            nothing(ax, "too few steps need the image")
            continue
        figures.draw_estimates(
            ax,
            {need.name: getattr(need, over) for need in known},
            [getattr(need, f"{over}_null") for need in known],
            reference=0.0,
            reference_label=NONE,
            null_label=NULL,
        )
        ax.set_xlim(-1, 1)
        ax.set_xlabel(f"Pearson r with mass, within samples,\n{words}")
    for ax in axes[:, 1]:
        ax.tick_params(axis="y", labelleft=False)  # the same rows as on the left
    return figures.finish(fig, axes, legend=True)


def scatter_page(result: MassUsage) -> Figure:
    """Draw kinds of usage against the mass, one dot per step; those that were not measured are left out.

    What steps need is drawn for those that need the image.
    """
    needed = [needed_name(order, level) for level in result.levels[:1] for order in (ANCHOR, LATER)]
    known = [name for name in ("above 1/n", SHAPES[0], *needed) if name in result.columns]
    fig, axes = figures.new_figure(figures.DOUBLE, 2.1, 1, len(known))
    for ax, name in zip(np.atleast_1d(axes), known, strict=True):
        x, y = result.columns["mass"], result.columns[name]
        seen = np.isfinite(y) & (y > 0 if name in needed else True)
        label = f"patches {name}" if name.startswith("above") else name
        if name in needed:
            label = f"needed at most,\n{next(order for order in ORDERS if order in name)}"
        if not seen.any():
            nothing(ax, "no step needs\nthe image")
            continue
        figures.draw_scatter(ax, x[seen], y[seen], xlabel="visual attention mass", ylabel=label)
        ax.set(xlim=(0, 1), ylim=(0, None))
    return figures.finish(fig, axes, f"n = {result.columns['mass'].size:,} steps, a dot for each.")


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
        known = np.isfinite(r.value)
        if known:
            ends = np.array([mass.min(), mass.max()])
            ax.plot(
                ends, np.polyval(np.polyfit(mass, count, 1), ends), color=ACCENT, linewidth=1, label="least squares"
            )
        bounds, null = f" [{r.low:.2f}, {r.high:.2f}]" if np.isfinite(r.low) else "", relation.pooled_null
        band = f"\nnull {null.low:.2f} to {null.high:.2f}" if null is not None and np.isfinite(null.low) else ""
        ax.set_title(f"r = {r.value:.2f}{bounds}{band}" if known else "r undefined", fontsize=7)
        ax.set_ylim(0, None)
        figures.note_estimates(ax, [r])
    return figures.finish(fig, panels, f"A dot for each of {mass.size:,} steps.", marks="brackets", legend=True)


def nothing(ax: Axes, words: str) -> None:
    """Say in a panel why nothing is drawn."""
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def _draw_relations(ax: Axes, relations: list[Relation], kind: str, *, null: bool) -> None:
    named = {relation.name: getattr(relation, kind) for relation in relations}
    bands = [getattr(relation, f"{kind}_null") for relation in relations] if null else []
    figures.draw_estimates(ax, named, bands, reference=0.0, reference_label=NONE, null_label=NULL)
    ax.set_xlim(-1, 1)
