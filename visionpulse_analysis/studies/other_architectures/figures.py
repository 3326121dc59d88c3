"""Other architectures, drawn: accuracy by visual FLOPs, each part of YOPO by itself, and what ViCA reads and takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.studies.other_architectures.measure import (
    Answers,
    Prefill,
    Words,
    estimates,
    share_right,
)

OF_PARTS = (figures.look("YOPO").colour, "#6e6e6e")


def headline(study: Answers, parts: Mapping[str, Mapping[str, Mapping[float, Words]]], dense: Words) -> Figure:
    """Draw accuracy by the share of visual FLOPs that is left, by arm, and each part of YOPO beside its control."""
    fig, (above, below) = figures.new_page(figures.DOUBLE, [3.0, 2.4])
    with figures.style():
        (frontier, right), singles = above.subplots(1, 2), below.subplots(1, len(parts))
    shown = {arm: study.accuracy(arm) for arm in study.visual}
    at: dict[float, int] = {}
    for arm, one in shown.items():
        share = study.visual[arm]
        moved = at[share] = at.get(share, -1) + 1  # so that intervals stand side by side
        look = figures.look(arm)
        error = np.nan_to_num([[one.value - one.low], [one.high - one.value]]).clip(min=0)
        frontier.errorbar(
            [100 * share + 1.2 * moved], [one.value], yerr=error, color=look.colour, marker=look.marker, markersize=4,
            elinewidth=0.7, linestyle="", label=arm, markerfacecolor="white" if look.hollow else look.colour,
            alpha=0.45 if "random" in arm else 1.0,
        )  # fmt: skip
    frontier.set(xlabel="visual FLOPs of prefill left (%)", ylabel="accuracy", ylim=(-0.02, 1.04))
    figures.draw_estimates(right, shown)
    right.set(xlabel="accuracy", xlim=(-0.02, 1.04))
    reference = share_right(dense).value
    for ax, (part, labels) in zip(np.ravel(singles), parts.items(), strict=True):
        for colour, line, (label, found) in zip(OF_PARTS, ("-", "--"), labels.items(), strict=False):
            figures.draw_curve(ax, list(found), list(estimates(found).values()), label, colour=colour)
            ax.lines[-1].set(linestyle=line)  # where both lie upon each other, both are seen
            ax.set_xticks(list(found))
        ax.axhline(reference, color=GREY, linewidth=0.8, linestyle=":")
        ax.set(xlabel=part, ylim=(-0.02, 1.04))
        ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.32), frameon=False)
    np.ravel(singles)[0].set_ylabel("words right")
    figures.draw_letters([frontier, right, *np.ravel(singles)])
    figures.draw_caption(
        fig, "a: the methods of b, hollow where not tuned, faint where heads or layers are random; points of one "
        "share stand side by side. Dotted: the untouched model.",
    )  # fmt: skip
    return fig


def vica_page(pairs: np.ndarray, horizons: Mapping[str, Mapping[str, list[float]]], prefill: Prefill) -> Figure:
    """Draw what each pair of layers reads untuned, from which layer on the image is needed, and what prefill takes."""
    fig, axes = figures.new_figure(figures.DOUBLE, 3.4, 1, 3)
    matrix, horizon, speed = np.ravel(axes)
    names = [str(layer) for layer in range(len(pairs))]
    figures.draw_matrix(
        matrix, pairs, names, names, vmin=0, vmax=1, label="words right, not tuned", xlabel="second layer read",
        ylabel="first layer read",
    )  # fmt: skip
    for colour, (model, kinds) in zip((GREY, figures.look("ViCA").colour), horizons.items(), strict=True):
        for style, (kind, curve) in zip("-:", kinds.items(), strict=False):
            horizon.plot(range(len(curve)), curve, style, color=colour, linewidth=1, label=f"{model}: {kind}")
    horizon.set(
        xlabel="text cut off from layer", ylabel="words right", ylim=(-0.02, 1.04), xticks=range(len(pairs) + 1)
    )
    sizes = list(prefill.seconds)
    for counted, label, style in ((False, "seconds", "o-"), (True, "FLOPs", "s--")):
        ratios = [prefill.ratio(n, counted) for n in sizes]
        speed.plot(sizes, ratios, style, color=figures.look("ViCA").colour, markersize=4, linewidth=1, label=label)
    speed.set(xlabel="patches", ylabel="stock over words alone", xscale="log", yscale="log")
    speed.xaxis.set(major_locator=FixedLocator(sizes), minor_locator=NullLocator(), major_formatter=ScalarFormatter())
    speed.yaxis.set_major_formatter(ScalarFormatter())
    for ax in (horizon, speed):
        ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figures.draw_letters([matrix, horizon, speed])
    return fig
