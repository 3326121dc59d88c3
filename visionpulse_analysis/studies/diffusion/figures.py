"""The diffusion reasoner, drawn: what pruning costs, where rows look, what leads, and a film strip over its steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures.plots import ends
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.diffusion.measure import (
    DENSE,
    LAGS,
    NOISE,
    NOTHING,
    SHARES,
    SHORT,
    WITHDRAWN,
    Study,
    late,
    mean_of,
    short_arm,
    withdrawn,
)
from visionpulse_analysis.traces import Trace

KINDS = dict(zip(SHARES, ("#D55E00", "#999999", "#332288"), strict=True))


def headline(study: Study) -> Figure:
    """Draw the five findings, and the order in which words are unmasked."""
    fig, axes = figures.new_figure(figures.DOUBLE, 6.6, 2, 3)
    short, long, shares, lags, costs, order = np.ravel(axes)
    for method in SHORT:
        curve = [study.accuracy("short", short_arm(method, budget)) for budget in study.budgets]
        whole = [study.accuracy("short", NOTHING), *curve, study.accuracy("short", DENSE)]
        figures.draw_curve(short, [0, *[100 * b for b in study.budgets], 100], whole, method,
                           colour=figures.look(method).colour)  # fmt: skip
    figures.draw_reference(short, study.accuracy("short", NOISE).value, "noise")
    short.set(xlabel="patches kept (%)", ylabel="accuracy, at once", ylim=(-0.02, 1.04))
    at = [100 * start for start in study.starts]
    for label, kind, method, colour in (
        ("DivPrune, 25 % kept", "long", "DivPrune", figures.look("DivPrune").colour),
        ("random, 25 % kept", "long", "random", figures.look("random").colour),
        ("no patch", "long", NOTHING, figures.look("no patch").colour),
        ("no patch, autoregressive", "other", NOTHING, "#332288"),
    ):
        curve = [study.accuracy(kind, late(method, start)) for start in study.starts]
        figures.draw_curve(long, at, curve, label, colour=colour)
    figures.draw_reference(long, study.accuracy("long", DENSE).value, "dense")
    long.set(xlabel="hidden from (% of the steps)", ylabel="accuracy, with thoughts", ylim=(-0.02, 1.04))
    layers = range(study.shares["twin"].shape[1])
    for number, kind in enumerate(SHARES):
        for model, line in (("twin", "-"), ("other", ":")):
            mean = study.shares[model][..., number].mean(axis=0)
            label = f"{kind}, {'diffusion' if model == 'twin' else 'autoregressive'}"
            shares.plot(list(layers), mean, line, color=KINDS[kind], linewidth=1, label=label)
    shares.set(xlabel="layer", ylabel="share of the attention", ylim=(-0.02, 1.04))
    found: dict[str, Estimate] = {f"{lag:+d} steps" if lag else "same step": mean_of(study.lagged[:, n])
                                  for n, lag in enumerate(LAGS)}  # fmt: skip
    figures.draw_estimates(lags, {**found, "+1, shuffled": mean_of(study.shuffled)})
    lags.set(xlabel="correlation, rise of answer's share\nwith rise of the word")
    for method, since, line, arms in (
        ("VTW", " from a layer", "-", [withdrawn(layer) for layer in WITHDRAWN]),
        ("DivPrune", " from a step", "-", [late("DivPrune", start) for start in study.starts]),
        ("random", " from a step", "--", [late("random", start) for start in study.starts]),
        ("dense", "", "", [DENSE]),
    ):
        look = figures.look(method)
        spent = [study.flops[arm].mean() / study.flops[DENSE].mean() for arm in arms]
        y, low, high = ends([study.accuracy("long", arm) for arm in arms])
        costs.errorbar(
            spent,
            y,
            yerr=[y - low, high - y],
            color=look.colour,
            marker=look.marker,
            linestyle=line,
            markersize=4,
            linewidth=0.8,
            label=method + since,
        )
    costs.set(xlabel="FLOPs of dense", ylabel="accuracy, with thoughts", ylim=(-0.02, 1.04))
    figures.draw_estimates(order, {kind: mean_of(values) for kind, values in study.order.items()})
    order.set(xlabel="unmasked at (share of steps)", xlim=(-0.02, 1.04))
    for ax in (short, long, shares, costs):
        ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figures.draw_letters(np.ravel(axes))
    figures.draw_caption(fig)
    return fig


def film_strip(trace: Trace, layer: int, *, columns: int = 6, most: int = 12) -> Figure:
    """Draw where the words that each denoising step unmasks were read, in the order in which they are unmasked.

    Parameters
    ----------
    trace : Trace
        As `denoise` gives one.
    layer : int
    columns, most : int
        Panels in a row; steps shown, those with the most attention to the image.
    """
    rows = np.stack([trace.at(step, layer) for step in range(len(trace))])
    steps = sorted(np.argsort(-rows.sum(axis=1), kind="stable")[:most].tolist())
    titles = [f"step {step + 1}, place {_places(trace, step)}\n{trace.tokens[step].strip()}" for step in steps]
    maps: Sequence[np.ndarray] = [trace.grid.to_map(rows[step]) for step in steps]
    axes = figures.overlay_strip(None, trace.images[0], maps, titles, columns=columns)
    return axes[0].get_figure(root=True)  # pyright: ignore[reportReturnType]


def _places(trace: Trace, step: int) -> str:
    return ", ".join(str(place + 1) for place in trace.meta["denoising"]["places"][step])
