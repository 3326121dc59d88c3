"""Figures of the study of trace length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.shared.arms import DENSE, Arms, Change
from visionpulse_analysis.studies.trace_length.measure import Changes


def headline(changes: Changes) -> Figure:
    """Change of length over the pairs that ended, the same over pairs both right, of accuracy, and of cut-offs.

    A row for every arm and way of decoding. Cut-offs are left out where no trace was cut off.
    """
    rows = {f"{name}, {how}": c for how, arms in changes.items() for name, c in arms.items()}
    names = sorted(rows, key=lambda name: list(changes[next(iter(changes))]).index(name.rsplit(", ", 1)[0]))
    panels: dict[str, dict[str, Estimate | None]] = {}
    if any(c.n_both for c in rows.values()):
        panels["length (%)"] = {n: rows[n].length for n in names}
    scored = {n: truth for n in names if (truth := rows[n].truth) is not None}
    if len(scored) == len(names):
        # Rows are shared, so an arm without a pair that is right both times costs the panel.
        if all(truth.length_both_right for truth in scored.values()):
            panels["both right (%)"] = {n: truth.length_both_right for n, truth in scored.items()}
        panels["accuracy (points)"] = {n: truth.change for n, truth in scored.items()}
    if any(c.cut_off.n_arm or c.cut_off.n_dense for c in rows.values()):
        panels["cut off (points)"] = {n: rows[n].cut_off.change for n in names}
    fig, axes = figures.new_figure(DOUBLE, 0.22 * len(names) + 0.6, 1, len(panels), sharey=True)
    for ax, (label, values) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        figures.draw_estimates(ax, _percent(values), reference=0, reference_label=DENSE, xlabel=label, methods=True)
    return figures.finish(fig, np.atleast_1d(axes), "Change against dense decoding of the same sample.", legend=True)


def spread(measured: Arms, arms: Sequence[str], by_group: Mapping[str, Change] | None) -> Figure:
    """How the change of length is distributed over the pairs that ended; length and accuracy by known question.

    arms : those of them that are there; without any, the first two.
    """
    shown = [name for name in arms if name in measured.names] or list(measured.pruned)[:2]
    fig, axes = figures.new_figure(DOUBLE, 2.4, 1, 1 if by_group is None else 3)
    first, *rest = np.atleast_1d(axes)
    dense, change = measured.rows(DENSE), {}
    for name in shown:
        pairs = dense.merge(measured.rows(name), on=["seed", "sample"])
        pairs = pairs[pairs["finished_x"] & pairs["finished_y"]]
        change[name] = (pairs["tokens_y"] - pairs["tokens_x"]).to_numpy()
    change = {name: values for name, values in change.items() if len(values)}
    if change:
        reach = max(1, *(int(np.abs(values).max()) for values in change.values()))
        bins = np.arange(-reach - 0.5, reach + 1, max(1, -(-2 * reach // 30)))  # whole tokens
        bins = np.append(bins, reach + 0.5) if bins[-1] < reach else bins
        level = {"reference": 0, "reference_label": DENSE}
        figures.draw_histogram(first, change, bins, xlabel="pruned minus dense (tokens)", ylabel="pairs", **level)
        most = max(np.histogram(values, bins)[0].max() for values in change.values())
        if most > 10:  # else the pairs of equal length hide all others
            first.set_yscale("symlog", linthresh=10)
            ticks = [tick for tick in (0, 5, 10, 100, 1000, 10_000) if tick <= 2 * most]
            first.set_yticks(ticks, map(str, ticks))
    else:
        with figures.style():
            first.set_title("no pair ended within the limit")
    if by_group is not None:
        lengths = {group: c.length for group, c in by_group.items()}
        shares = {group: c.truth.ratio for group, c in by_group.items() if c.truth is not None}
        dense_at: dict[str, Any] = {"reference_label": DENSE}
        figures.draw_estimates(rest[0], _percent(lengths), reference=0, xlabel="change of length (%)", **dense_at)
        figures.draw_estimates(
            rest[1], _percent(shares), reference=100, xlabel="share of dense accuracy (%)", **dense_at
        )
        rest[1].set_yticklabels([])
    if change or by_group is not None:
        n = " and ".join(dict.fromkeys(f"{len(values):,}" for values in change.values()))
        figures.finish(fig, np.atleast_1d(axes), f"Changes of n = {n} pairs that both ended.", legend=True)
    return fig


def reasons(changes: Mapping[str, Change]) -> Figure | None:
    """Why traces change: detours per trace by arm, and the change of tokens by what they are spent on.

    Over the pairs that ended both times; None where there are none, or answers are unknown.
    """
    scored = {name: c.truth for name, c in changes.items() if c.truth is not None and c.n_both}
    if not scored:
        return None
    fig, axes = figures.new_figure(DOUBLE, 2.4, 1, 1 + len(scored), width_ratios=[1.25] + [1.0] * len(scored))
    dense = next(iter(scored.values())).dense_detours.value
    figures.draw_estimates(
        axes[0], {n: c.detours for n, c in scored.items()}, reference=dense, reference_label=DENSE,
        xlabel="detours per trace", methods=True,
    )  # fmt: skip
    for ax, (name, c) in zip(axes[1:], scored.items(), strict=True):
        figures.draw_estimates(ax, c.words, reference=0, reference_label=DENSE, xlabel="tokens")
        ax.xaxis.set_major_locator(MaxNLocator(2))
        with figures.style():
            ax.set_title(re.sub(r" (?=\S+( %)?$)", "\n", name, count=1))
        if ax is not axes[1]:
            ax.set_yticklabels([])
    # One scale, so that bars of different arms may be compared.
    ends = np.array([ax.get_xlim() for ax in axes[1:]])
    for ax in axes[1:]:
        ax.set_xlim(ends.min(), ends.max())
    return figures.finish(fig, axes, legend=True)


def _percent(named: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    return {name: 100 * interval for name, interval in named.items() if interval is not None}
