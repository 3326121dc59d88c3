"""Learned selection, drawn: budgets, what is left without a part, layers, sizes, and what two questions keep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.studies.learned_selection.measure import (
    CNN,
    COVIPAL,
    EVERYWHERE,
    GUIDE,
    NO_QUESTION,
    ORACLE,
    OTHER_QUESTION,
    STAGES,
    TRUTH,
    Layers,
    Learned,
    at_budget,
)
from visionpulse_analysis.studies.shared.arms import DENSE

COLOURS = {GUIDE: "#332288", TRUTH: "#56B4E9"}  # the others are methods, drawn as everywhere
OF_SIZES = {
    "raw attention, layer 0": "#E69F00",
    "CNN, layer 0": "#D55E00",
    "raw attention, layer 4": "#56B4E9",
    "CNN, layer 4": "#332288",
}


def headline(study: Learned) -> Figure:
    """Draw accuracy and what is held of the objects asked about by budget, and accuracy without one part each."""
    fig, (budgets, without) = figures.new_page(figures.DOUBLE, [3.0, 2.6])
    with figures.style():
        (accuracy, held), (parts, networks) = budgets.subplots(1, 2), without.subplots(1, 2)
    for ax, value in ((accuracy, study.accuracy), (held, study.held)):
        for number, label in enumerate(EVERYWHERE):
            curve = [value(at_budget(label, budget)) for budget in study.budgets]
            line = "--" if label in (GUIDE, ORACLE, TRUTH) else "-"  # dashed: those which know what comes later
            moved = 1 + 0.03 * (number - len(EVERYWHERE) / 2)  # so that intervals stand side by side
            look, y = figures.look(label), np.array([one.value for one in curve])
            error = np.nan_to_num([y - [one.low for one in curve], [one.high for one in curve] - y]).clip(min=0)
            ax.errorbar(
                [100 * budget * moved for budget in study.budgets], y, yerr=error, linestyle=line, linewidth=1,
                elinewidth=0.7, color=COLOURS.get(label, look.colour), marker=look.marker, markersize=4, label=label,
            )  # fmt: skip
        ax.set(xlabel="patches kept (%)", ylim=(-0.02, 1.04))
    accuracy.axhline(study.accuracy(DENSE).value, color=GREY, linewidth=0.8, linestyle=":", label="dense")
    accuracy.set_ylabel("accuracy")
    held.set_ylabel("share held of what is asked")
    figures.draw_legend([accuracy, held])
    kept = f"{100 * study.compared:g} % kept"
    for ax, labels, title in (
        (parts, (COVIPAL, *STAGES, NO_QUESTION, OTHER_QUESTION), f"CoViPAL, {kept}"),
        (networks, tuple(CNN), f"CNN, {kept}"),
    ):
        figures.draw_estimates(ax, {label: study.accuracy(at_budget(label, study.compared)) for label in labels})
        ax.axvline(study.accuracy(at_budget("random", study.compared)).value, color=GREY, linewidth=0.8, linestyle="--")
        ax.set(xlabel="accuracy (dashed: random)", xlim=(-0.02, 1.04))
        ax.set_title(title, loc="left", fontsize=8)
    return figures.finish(
        fig,
        [accuracy, held, parts, networks],
        "Points of one budget stand side by side. Dashed curves know what comes later.",
    )


def layers_page(found: Layers, guidance: int, sizes: Mapping[str, Mapping[int, Estimate]]) -> Figure:
    """Draw what each layer's attention holds, how it ranks patches, and what is held on pictures of other sizes."""
    fig, axes = figures.new_figure(figures.DOUBLE, 3.4, 1, 3)
    held, rank, size = np.ravel(axes)
    at = list(range(len(found.words)))
    for label, curve, colour in (
        ("answer", found.answer, "#D55E00"),
        ("question and template", found.prompt, "#009E73"),
        ("question's words", found.words, "#332288"),
    ):
        figures.draw_curve(held, at, curve, label, colour=colour)
    held.axhline(found.chance, color=GREY, linewidth=0.8, linestyle="--", label="random")
    held.axvline(guidance, color=GREY, linewidth=0.8, linestyle=":")
    held.set(xlabel="layer", ylabel="share held of what is asked", ylim=(-0.02, 1.04))
    figures.draw_curve(rank, at, found.rank, "attention of the words", colour="#332288")
    for layer, one in found.cnn.items():
        error = [[one.value - one.low], [one.high - one.value]]
        label = "after the network" if layer == min(found.cnn) else None
        rank.errorbar(
            [layer], [one.value], yerr=error, marker="s", markersize=4, color="#D55E00", linestyle="", label=label
        )
    rank.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    rank.set(xlabel="layer", ylabel="rank correlation, relevance")
    for label, curve in sizes.items():
        figures.draw_curve(size, list(curve), list(curve.values()), label, colour=OF_SIZES.get(label))
    size.set(xlabel="patches of a picture", ylabel="share held of what is asked", ylim=(-0.02, 1.04))
    for ax in (held, rank, size):
        _legend(ax)
    return figures.finish(fig, axes, marks="bands")


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)


def kept_page(vlm: VLM, sample: Sample, kept: Mapping[str, np.ndarray]) -> Figure:
    """Draw what is kept of one picture, bool [patch], for each of some questions."""
    prompt = vlm.prompt(sample.image, sample.question)
    fig, axes = figures.new_figure(figures.DOUBLE, 2.6, 1, len(kept))
    for ax, (question, patches) in zip(np.ravel(axes), kept.items(), strict=True):
        figures.draw_kept(ax, prompt.images[0], prompt.grid.to_map(patches))
        ax.set_title(question, fontsize=8, parse_math=False)
    return fig
