"""Tables, sentences and figures of the study of trace length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Claim, Estimate
from visionpulse_analysis.studies.shared.intervals import draw_named, scaled, show
from visionpulse_analysis.studies.shared.paired import PairedLengths
from visionpulse_analysis.studies.shared.per_trace import PURPOSES, Arm
from visionpulse_analysis.studies.trace_length.measure import DENSE, Change, ScoredChange, compare, judge_changes

# arXiv 2605.31457: change of trace length and share of full accuracy; at prefill: FastV, LOOK-M and VisionZip at 10 %.
PAPER = {
    "VisionPulse 5 %": ("-11.2 %", "98.2 %"),
    "VisionPulse 10 %": ("-12.3 %", "no loss of average accuracy"),
    "at prefill 10 %": ("+54 to +63 %", "21 to 75 %, by benchmark and method"),
}
KEPT = 0.98  # of dense accuracy: what the paper reports of its 5 % setting
WORDS = {-1: "shorter", 1: "longer"}
SIGNS = {"falls": -1, "rises": 1, "not shown": 0}
Changes = Mapping[str, Mapping[str, Change]]  # [decoding][arm]


def compare_all(measured: Mapping[str, Mapping[str, Arm]]) -> dict[str, dict[str, Change]]:
    """Compare every arm with the dense one, for every way of decoding: [decoding][arm] -> Change."""
    together = sum(len(arms) - 1 for arms in measured.values())
    return {
        decoding: {name: compare(arms[DENSE], arm, together=together) for name, arm in arms.items() if name != DENSE}
        for decoding, arms in measured.items()
    }


def judged(changes: Changes) -> dict[tuple[str, str], dict[str, Claim]]:
    """All comparisons of the study as one family of tests: (decoding, arm) -> outcome -> Claim."""
    every = {(how, name): c for how, arms in changes.items() for name, c in arms.items()}
    return judge_changes(every, "length, cut-offs and accuracy of every arm and way of decoding")


def numbers(changes: Changes) -> dict[str, dict[str, Any]]:
    """Every comparison with its verdicts, JSON-ready: [decoding][arm]."""
    found = judged(changes)
    return {
        how: {
            name: {**c.numbers(), "judged": {what: v.to_json() for what, v in found[how, name].items()}}
            for name, c in arms.items()
        }
        for how, arms in changes.items()
    }


def table(changes: Changes) -> pd.DataFrame:
    """Every arm of every way of decoding, one row each."""
    rows, found = {}, judged(changes)
    for decoding, arms in changes.items():
        for name, c in arms.items():
            verdict = found[decoding, name]
            row = {
                "kept": f"{100 * c.retention:.1f} %",
                **cut_off_columns(c),
                "pairs that ended": f"{c.n_both} of {c.n_pairs}",
                "length": show_length(c),
                "p, length": show_p(verdict["length"]),
                "shorter / equal / longer, %": " / ".join(
                    f"{100 * share.value:.0f}" for share in (c.shorter, c.equal, c.longer)
                ),
            }
            if c.truth is not None:
                row |= {
                    "accuracy": show(c.truth.accuracy, sign=False),
                    "change, points": show(c.truth.change, unit=""),
                    "p, accuracy": show_p(verdict["accuracy"]),
                    "length, both right": show(c.truth.length_both_right),
                    "dense detours": show(c.truth.dense_detours, 1, "", sign=False),
                    "detours": show(c.truth.detours, 1, "", sign=False),
                    "change of detours": show(c.truth.detour_change, 1, ""),
                }
            rows[f"{name}, {decoding}"] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def cut_off_columns(c: PairedLengths) -> dict[str, str]:
    """How many traces were cut off, in this arm and densely, as columns of a table."""
    return {"cut off": f"{c.cut_off.n_arm} of {c.n_pairs}", "cut off, dense": f"{c.cut_off.n_dense} of {c.n_pairs}"}


def show_p(verdict: Claim | None) -> str:
    """The p of a test alone and among its family: ``0.012, adjusted 0.24``."""
    return "no test" if verdict is None or np.isnan(verdict.p) else f"{verdict.p:.2g}, adjusted {verdict.adjusted:.2g}"


def paper_table(changes: Changes) -> pd.DataFrame:
    """What the paper reports beside what was measured here."""
    rows = {}
    for decoding, arms in changes.items():
        for name, (length, accuracy) in PAPER.items():
            if name in arms:
                c = arms[name]
                rows[f"{name}, {decoding}"] = {
                    "length, paper": length,
                    "length, here": show_length(c),
                    "share of full accuracy, paper": accuracy,
                    "share of full accuracy, here": show(c.truth and c.truth.ratio, sign=False),
                }
    return pd.DataFrame.from_dict(rows, orient="index")


def verdicts(changes: Changes, decoding: str) -> list[str]:
    """What transfers and what does not, each sentence chosen by its test among all of `judged`."""
    arms, lines, found = changes[decoding], [], judged(changes)
    reported = {name: c for name, c in arms.items() if name.startswith(("VisionPulse", "at prefill"))}
    for name, c in reported.items():
        verdict, way = found[decoding, name], 1 if name.startswith("at prefill") else -1
        lines.append(
            f"{name}: {_about_length(c, verdict, way, _floor(changes, decoding, c))}{about_cut_off(c, verdict)}"
            + ("" if c.truth is None else f"{_about_detours(c, c.truth, verdict)} {_about_accuracy(c.truth, verdict)}")
        )
    pulse, once = arms.get("VisionPulse 10 %"), arms.get("at prefill 10 %")
    if pulse and once and pulse.truth and once.truth:
        verdict = found[decoding, "at prefill 10 %"]
        worse = (
            (verdict["accuracy"].decision, verdict["length"].decision) == ("falls", "rises")
            and once.truth.change.high < pulse.truth.change.low
            and once.length.low > pulse.length.high
        )
        lines.append(
            "The paper's ordering transfers: pruning once at prefill costs more accuracy and gives longer traces than "
            "choosing afresh at every step."
            if worse
            else "The paper's ordering (pruning at prefill costs accuracy and lengthens) is not established here: for "
            "that accuracy has to fall and length to rise at prefill, by the tests, with intervals of both apart from "
            "those of choosing afresh."
        )
    if reported:
        size = next(iter(found.values()))["length"].size
        lines.append(
            f"What falls or rises is told by exact tests adjusted together (Holm), {size} of them: length over the "
            "pairs that ended, cut-offs, and accuracy where it is known, of every arm and way of decoding. Intervals "
            f"shown are those of each comparison alone; that {100 * KEPT:g} % are kept is decided by wider ones, which "
            "hold for all comparisons together."
        )
    return lines


def show_length(c: Change) -> str:
    """The relative change of length over the pairs that ended, as text, or that there is none."""
    if c.n_both == 0:
        return "not known: no pair ended within the limit both times"
    if c.equal.value == 1:
        return "no trace changed its length" if c.n_both == c.n_pairs else "no trace that ended changed its length"
    return show(c.length)


def about_cut_off(c: PairedLengths, verdict: Mapping[str, Claim]) -> str:
    """A sentence about the traces that reached the limit, with a space in front; empty without one."""
    cut = c.cut_off
    if cut.n_arm == cut.n_dense == 0:
        return ""
    longer = f", longer by at least {cut.at_least:.0f} tokens on average" if cut.only_arm else ""
    shorter = f", shorter by at least {-cut.at_most:.0f} tokens on average" if cut.only_dense else ""
    decided = {
        "rises": "more than densely",
        "falls": "fewer than densely",
        "not shown": "no difference is shown",
    }[verdict["cut off"].decision]
    return (
        f" Cut off at the limit: {cut.n_arm} of {c.n_pairs} traces, densely {cut.n_dense} ({decided}; "
        f"{show(cut.change, unit=' points')}). Only here {cut.only_arm}{longer}; only densely "
        f"{cut.only_dense}{shorter}."
    )


def _about_length(c: Change, verdict: Mapping[str, Claim], reported: int, floor: str) -> str:
    """The sign found beside the sign that the paper reports: -1 shorter, 1 longer."""
    found = SIGNS[verdict["length"].decision]
    ended = "" if c.n_both == c.n_pairs else f" over the {c.n_both} of {c.n_pairs} pairs that ended"
    shown = show_length(c) + ended
    if found == 0:
        nothing = c.equal.value == 1 or c.n_both == 0
        told = show_length(c) if nothing else f"no change of length is shown ({shown})"
        return f"{told}; " + (floor if floor and reported == -1 else f"the paper reports {WORDS[reported]} traces.")
    if found == 1 and reported == -1 and floor:
        return f"traces get longer ({shown}); {floor}"
    if found == reported == -1 and "accuracy" in verdict and verdict["accuracy"].decision == "falls":
        return f"traces get shorter ({shown}), but right answers go with them: not what the paper reports."
    if found == reported:
        return f"traces get {WORDS[found]} ({shown}), as the paper reports."
    return f"traces get {WORDS[found]} ({shown}); that the paper's get {WORDS[reported]} does not transfer."


def _floor(changes: Changes, decoding: str, c: Change) -> str:
    """That dense traces were as short as they can be, and which to look at instead; empty where they were not."""
    if c.truth is None or c.truth.dense_detours.value != 0:  # NaN: no pair ended, nothing is known
        return ""
    truths = {how: next(iter(arms.values())).truth for how, arms in changes.items() if arms}
    others = [how for how, truth in truths.items() if truth is not None and truth.dense_detours.value > 0]
    see = [f"see the {how} ones" for how in others]
    see += ["see notebook 03's sampled decoding"] if "sampled" not in changes else []
    return f"dense {decoding} traces hold no detour, so nothing could be shortened{''.join(f'; {s}' for s in see[:1])}."


def _about_detours(c: Change, truth: ScoredChange, verdict: Mapping[str, Claim]) -> str:
    """How much of the change of length is spent on detours; empty where no trace changed its length."""
    if c.equal.value == 1 or c.n_both == 0:
        return ""
    spent = truth.words["detours"]
    told = verdict["length"].decision != "not shown"  # a share of what may be nothing means nothing
    share = spent.value / c.tokens.value if told else 0.0
    return (
        f" Detours per trace go from {truth.dense_detours.value:.1f} to {truth.detours.value:.1f} "
        f"({show(truth.detour_change, 1, '')}): of the change of {show(c.tokens, 1, '')} tokens, "
        f"{show(spent, 1, '')} are spent on detours{f', or {100 * share:.0f} %' if share > 0 else ''}."
    )


def _about_accuracy(c: ScoredChange, verdict: Mapping[str, Claim]) -> str:
    """Whether it falls or rises, by the test; and whether 98 % are kept, by an interval that holds for all together."""
    decision, shown = verdict["accuracy"].decision, f"{show(c.ratio, sign=False)} of dense"
    least = f"at least {100 * KEPT:g} % of dense are kept"
    if decision != "not shown":
        kept = f"; {least}" if c.ratio_together.low >= KEPT else ""
        return f"Accuracy {decision} ({show(c.change, unit=' points')}; {shown}{kept})."
    if c.ratio_together.low >= KEPT:
        return f"Accuracy is kept ({shown}: {least})."
    open_still = f"whether {100 * KEPT:g} % of dense are kept is open ({show(c.ratio, sign=False)})"
    return f"No change of accuracy is shown ({show(c.change, unit=' points')}), and {open_still}."


def headline(changes: Changes) -> Figure:
    """Change of length over the pairs that ended, the same over pairs both right, of accuracy, and of cut-offs.

    A row for every arm and way of decoding. Cut-offs are left out where no trace was cut off.
    """
    rows = {f"{name}, {how}": c for how, arms in changes.items() for name, c in arms.items()}
    names = sorted(rows, key=lambda name: list(changes[next(iter(changes))]).index(name.rsplit(", ", 1)[0]))
    panels: dict[str, dict[str, Estimate | None]] = {"length (%)": {n: rows[n].length for n in names}}
    known = {n: rows[n].truth for n in names}
    scored = {n: truth for n, truth in known.items() if truth is not None}
    if len(scored) == len(names):
        # Rows are shared, so an arm without a pair that is right both times costs the panel.
        if all(truth.length_both_right for truth in scored.values()):
            panels["both right (%)"] = {n: truth.length_both_right for n, truth in scored.items()}
        panels["accuracy (points)"] = {n: truth.change for n, truth in scored.items()}
    if any(c.cut_off.n_arm or c.cut_off.n_dense for c in rows.values()):
        panels["cut off (points)"] = {n: rows[n].cut_off.change for n in names}
    if not any(c.n_both for c in rows.values()):
        del panels["length (%)"]
    fig, axes = figures.new_figure(DOUBLE, 0.22 * len(names) + 0.6, 1, len(panels), sharey=True)
    for ax, (label, values) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        draw_named(ax, percent(values), reference=0, xlabel=label)
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
    draw_named(axes[0], {n: c.detours for n, c in scored.items()}, reference=dense, xlabel="detours per trace")
    for ax, (name, c) in zip(axes[1:], scored.items(), strict=True):
        draw_named(ax, {purpose: c.words[purpose] for purpose in PURPOSES}, reference=0, xlabel="tokens")
        with figures.style():
            ax.set_title(re.sub(r" (?=\S+( %)?$)", "\n", name, count=1))
        if ax is not axes[1]:
            ax.set_yticklabels([])
    ends = np.array([ax.get_xlim() for ax in axes[1:]])
    for ax in axes[1:]:
        ax.set_xlim(ends.min(), ends.max())
    return fig


def percent(named: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    """All known intervals in percent."""
    return {name: scaled(interval) for name, interval in named.items() if interval is not None}
