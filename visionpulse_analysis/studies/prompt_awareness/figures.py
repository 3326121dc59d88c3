"""Relevance against diversity, drawn: accuracy, relevance held and overlap by r, and the kept sets of one sample."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.prompt_awareness.measure import (
    ORACLE,
    OTHERS,
    RANDOM,
    PromptAwareness,
    at_budget,
    ratio_name,
)
from visionpulse_analysis.studies.shared.arms import DENSE

ONCE = "static random"  # what this study calls random: one set, drawn before the language model


def headline(study: PromptAwareness) -> Figure:
    """Draw one row per budget: accuracy (where known), relevance held, and overlap with the oracle's set, by r."""
    dense = study.arms.changes[DENSE].truth
    rows, columns = len(study.budgets), 2 if dense is None else 3
    fig, grid = figures.new_figure(figures.DOUBLE, 2.1 * rows + 0.5, rows, columns)
    panels = np.asarray(grid, dtype=object).reshape(rows, columns)
    for budget, axes in zip(study.budgets, panels, strict=True):
        *first, held, overlap = axes
        for ax in first:
            _draw(ax, study, budget, study.accuracy)
            figures.draw_reference(ax, dense.accuracy.value if dense else np.nan, DENSE)
            ax.set_ylabel("accuracy")
        _draw(held, study, budget, study.held)
        held.set_ylabel("relevance held")
        _draw(overlap, study, budget, partial(study.overlap, at_budget(ORACLE, budget)), (RANDOM,))
        overlap.set_ylabel("overlap with the oracle")
        for ax in axes:
            ax.set(xlabel="r: share chosen by relevance", ylim=(0, 1.04))
            ax.set_title(f"{100 * budget:g} % kept", loc="left", fontsize=8)
    return figures.finish(fig, panels, marks="bands", legend=True)


def _draw(ax: Axes, study: PromptAwareness, budget: float, value, others: tuple[str, ...] = (RANDOM, ORACLE)) -> None:
    """Draw a measure of every arm: a curve over r, and flat bands for what has no r."""
    for label in others:
        # What has no r is one number, drawn from the least to the most r.
        flat: Estimate = value(at_budget(label, budget))
        ends = [min(study.ratios), max(study.ratios)]
        shown = ONCE if label == RANDOM else label
        figures.draw_curve(ax, ends, [flat, flat], shown, dashed=True)
    curve = [value(at_budget(ratio_name(ratio), budget)) for ratio in study.ratios]
    figures.draw_curve(ax, study.ratios, curve, "ZSPAPrune")


def overlap_matrix(study: PromptAwareness, budget: float) -> Figure:
    """Draw the Jaccard index of what any two arms keep at a budget."""
    labels = [*study.labels, *OTHERS]
    arms = [at_budget(label, budget) for label in labels]
    values = np.array([[study.overlap(a, b).value for b in arms] for a in arms])
    fig, ax = figures.new_figure(figures.DOUBLE, 4.6)
    names = [ONCE if label == RANDOM else label for label in labels]
    figures.draw_matrix(ax, values, names, names, vmin=0, vmax=1, label="overlap (Jaccard index)")
    figures.draw_caption(fig, f"Means over n = {study.overlap(arms[0], arms[-1]).n_clusters:,} samples.")
    return fig


def kept_page(vlm: VLM, sample: Sample, study: PromptAwareness, number: int, budget: float) -> Figure:
    """Draw what the dense answer to one sample depends on, and what some arms keep of it."""
    prompt = vlm.prompt(sample.image, sample.question)
    relevance, grid, image = study.relevance[number], prompt.grid, prompt.images[0]
    ratios = [study.ratios[place] for place in sorted({0, len(study.ratios) // 2, len(study.ratios) - 1})]
    labels = [*map(ratio_name, ratios), RANDOM, ORACLE, *OTHERS]
    fig, grid_of_axes = figures.new_figure(figures.DOUBLE, 4.2, 2, -(-(len(labels) + 1) // 2))
    first, *panels = grid_of_axes.flat
    figures.draw_overlay(first, image, grid.to_map(relevance), vmin=0, vmax=max(float(relevance.max()), 1e-12))
    first.set_title("relevance to\nthe dense answer", fontsize=8)
    for ax, label in zip(panels, labels, strict=False):
        figures.draw_kept(ax, image, grid.to_map(study.kept[at_budget(label, budget)][number]))
        ax.set_title(ONCE if label == RANDOM else label, fontsize=8, parse_math=False)
    for ax in panels[len(labels) :]:
        ax.set_axis_off()
    question = figures.fit_text(sample.question, 72 * figures.DOUBLE - 20, most_lines=2)
    fig.suptitle(question, fontsize=8, parse_math=False)
    return figures.finish(fig, [first, *panels], f"n = 1 sample, {100 * budget:g} % kept.")
