"""Tables, sentences and figures of the study of trace length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.statistics import Interval
from visionpulse_analysis.studies.trace_length import DENSE, PURPOSES, Arm, Change, compare

# arXiv 2605.31457: change of trace length and share of full accuracy; at prefill: FastV, LOOK-M and VisionZip at 10 %.
PAPER = {
    "VisionPulse 5 %": ("-11.2 %", "98.2 %"),
    "VisionPulse 10 %": ("-12.3 %", "no loss of average accuracy"),
    "at prefill 10 %": ("+54 to +63 %", "20 to 84 %, by benchmark and method"),
}
Changes = Mapping[str, Mapping[str, Change]]  # [decoding][arm]


def compare_all(measured: Mapping[str, Mapping[str, Arm]]) -> dict[str, dict[str, Change]]:
    """Compare every arm with the dense one, for every way of decoding: [decoding][arm] -> Change."""
    return {
        decoding: {name: compare(arms[DENSE], arm) for name, arm in arms.items() if name != DENSE}
        for decoding, arms in measured.items()
    }


def length_by_task(measured: Mapping[str, Arm], tasks: Sequence[str], name: str) -> dict[str, Change]:
    """Compare one arm with the dense one, task by task."""
    return {task: compare(measured[DENSE], measured[name], np.array(tasks) == task) for task in dict.fromkeys(tasks)}


def show(interval: Interval | None, scale: float = 100.0, unit: str = " %", sign: bool = True) -> str:
    """An interval as text, such as ``-11.2 % [-14.0, -8.1]``."""
    if interval is None:
        return "not known"
    first = f"{scale * interval.estimate:{'+' if sign else ''}.1f}{unit}"
    if np.isnan(interval.low):
        return first
    return f"{first} [{scale * interval.low:.1f}, {scale * interval.high:.1f}]"


def table(changes: Changes) -> pd.DataFrame:
    """Every arm of every way of decoding, one row each."""
    rows = {}
    for decoding, arms in changes.items():
        for name, c in arms.items():
            row = {
                "kept": f"{100 * c.retention:.1f} %",
                "length": show(c.length),
                "shorter / equal / longer, %": " / ".join(
                    f"{100 * share.estimate:.0f}" for share in (c.shorter, c.equal, c.longer)
                ),
                "cut off": f"{100 * c.unfinished:.1f} %",
            }
            if c.accuracy is not None:
                row |= {
                    "accuracy": show(c.accuracy, sign=False),
                    "change, points": show(c.accuracy_change, unit=""),
                    "p": f"{c.p:.2g}",
                    "length, both right": show(c.length_both_right),
                    "detours": show(c.detours, 1, "", sign=False),
                }
            rows[f"{name}, {decoding}"] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def paper_table(changes: Changes) -> pd.DataFrame:
    """What the paper reports beside what was measured here."""
    rows = {}
    for decoding, arms in changes.items():
        for name, (length, accuracy) in PAPER.items():
            if name in arms:
                c = arms[name]
                rows[f"{name}, {decoding}"] = {
                    "length, paper": length,
                    "length, here": show(c.length),
                    "share of full accuracy, paper": accuracy,
                    "share of full accuracy, here": show(c.accuracy_ratio, sign=False),
                }
    return pd.DataFrame.from_dict(rows, orient="index")


def verdicts(changes: Changes, decoding: str) -> list[str]:
    """What transfers and what does not, each sentence chosen by its interval."""
    arms, lines = changes[decoding], []
    for name, c in arms.items():
        lines.append(f"{name}: {_about_length(c)}" + ("" if c.accuracy_ratio is None else _about_accuracy(c)))
    pulse, once = arms.get("VisionPulse 10 %"), arms.get("at prefill 10 %")
    if pulse is not None and once is not None and pulse.accuracy is not None and once.accuracy is not None:
        worse = once.accuracy_change.high < pulse.accuracy_change.low and once.length.low > pulse.length.high
        lines.append(
            "The paper's ordering transfers: pruning once at prefill costs more accuracy and gives longer traces than "
            "choosing afresh at every step."
            if worse
            else "The paper's ordering (pruning at prefill costs accuracy and lengthens) is not established here: the "
            "intervals of the two methods overlap or point the other way."
        )
    return lines


def _about_length(c: Change) -> str:
    shown = show(c.length)
    if c.length.high < 0:
        return f"traces get shorter ({shown}), as the paper reports; "
    if c.length.low > 0:
        return f"traces get longer ({shown}); the paper's shortening does not transfer; "
    return f"no change of length can be told ({shown}); the paper's shortening is not seen; "


def _about_accuracy(c: Change) -> str:
    shown = show(c.accuracy_ratio, sign=False)
    if c.accuracy_ratio.low >= 0.98:
        return f"accuracy is kept ({shown} of dense)."
    if c.accuracy_ratio.high < 0.98:
        return f"accuracy is lost ({shown} of dense)."
    return f"whether 98 % of dense accuracy are kept is open ({shown})."


def headline(changes: Changes) -> Figure:
    """Change of length, the same over pairs both right, and of accuracy: a row for every arm and way of decoding."""
    rows = {f"{name}, {how}": c for how, arms in changes.items() for name, c in arms.items()}
    names = sorted(rows, key=lambda name: list(changes[next(iter(changes))]).index(name.rsplit(", ", 1)[0]))
    panels = {"change of length (%)": {n: rows[n].length for n in names}}
    if all(c.accuracy_change is not None for c in rows.values()):
        panels["length, both right (%)"] = {n: rows[n].length_both_right for n in names}
        panels["change of accuracy (points)"] = {n: rows[n].accuracy_change for n in names}
    fig, axes = figures.new_figure(DOUBLE, 0.22 * len(names) + 0.6, 1, len(panels), sharey=True)
    for ax, (label, values) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        draw_intervals(ax, values, scale=100, reference=0, xlabel=label)
    return fig


def spread(dense: Arm, arms: Mapping[str, Arm], by_task: Mapping[str, Change] | None) -> Figure:
    """How the paired change of length is distributed, and by task where tasks are known."""
    fig, axes = figures.new_figure(DOUBLE, 2.4, 1, 1 if by_task is None else 2)
    first, *rest = np.atleast_1d(axes)
    change = {name: (arm.length - dense.length).ravel() for name, arm in arms.items()}
    reach = max(1, max(int(np.abs(values).max()) for values in change.values()))
    bins = np.linspace(-reach - 0.5, reach + 0.5, 30)
    figures.draw_histogram(
        first, change, bins, xlabel="pruned minus dense length (tokens)", ylabel="pairs", reference=0
    )
    first.set_yscale("symlog", linthresh=10)
    figures.draw_legend(first)
    for ax in rest:
        lengths = {f"{task}, {c.n_pairs} pairs": c.length for task, c in by_task.items()}
        draw_intervals(ax, lengths, scale=100, reference=0, xlabel="change of length (%)")
    return fig


def reasons(arms: Mapping[str, Arm], changes: Mapping[str, Change]) -> Figure:
    """Why traces change: detours per trace by arm, and the change of tokens by what they are spent on."""
    fig, axes = figures.new_figure(DOUBLE, 2.3, 1, 1 + len(changes), width_ratios=[1.25] + [1.0] * len(changes))
    means = {DENSE: float(arms[DENSE].detours.mean()), **{n: c.detours for n, c in changes.items()}}
    draw_intervals(
        axes[0],
        {n: c.detours for n, c in changes.items()},
        reference=means[DENSE],
        xlabel="detours per trace",
    )
    spans = [i for c in changes.values() for i in c.words.values()]
    low, high = min(_end(i, "low") for i in spans), max(_end(i, "high") for i in spans)
    margin = 0.08 * max(high - low, 1e-9)
    for ax, (name, change) in zip(axes[1:], changes.items(), strict=True):
        draw_intervals(ax, {p: change.words[p] for p in PURPOSES}, reference=0, xlabel="tokens per trace")
        ax.set_title(name)
        ax.set_xlim(low - margin, high + margin)
        if ax is not axes[1]:
            ax.set_yticklabels([])
    return fig


def draw_intervals(ax: Axes, named: Mapping[str, Interval | None], *, scale: float = 1.0, **options: object) -> Axes:
    """Draw named intervals; a value without an interval (too few samples, all equal) is a bare point."""
    known = {name: i for name, i in named.items() if i is not None}
    ends = [[scale * _end(i, end) for i in known.values()] for end in ("estimate", "low", "high")]
    return figures.draw_interval(ax, list(known), *ends, **options)


def _end(interval: Interval, name: str) -> float:
    value = getattr(interval, name)
    return interval.estimate if np.isnan(value) else value
