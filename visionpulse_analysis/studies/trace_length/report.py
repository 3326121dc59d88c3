"""Tables and sentences of the study of trace length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.studies.shared.arms import Answers, Change
from visionpulse_analysis.studies.shared.sentences import (
    CHANGED,
    Finding,
    about_cut_off,
    adjusted,
    cut_off_column,
    show_p,
    written,
)
from visionpulse_analysis.studies.trace_length.measure import Changes, judged, judged_groups

# arXiv 2605.31457: change of trace length and share of full accuracy; at prefill: FastV, LOOK-M and VisionZip at 10 %.
PAPER = {
    "VisionPulse 5 %": ("-11.2 %", "98.2 %"),
    "VisionPulse 10 %": ("-12.3 %", "no loss of average accuracy"),
    "at prefill 10 %": ("+54 to +63 %", "21 to 75 %, by benchmark and method"),
}
KEPT = 0.98  # of dense accuracy: what the paper reports of its 5 % setting
WORDS = {-1: "shorter", 1: "longer"}
SIGNS = {"falls": -1, "rises": 1, "not shown": 0}


def table(changes: Changes) -> pd.DataFrame:
    """Every arm of every way of decoding, one row each."""
    rows, found = {}, judged(changes)
    for decoding, arms in changes.items():
        for name, c in arms.items():
            row = {
                "kept": f"{100 * c.retention:.1f} %",
                **_cut_off(c),
                "pairs that ended": f"{c.n_both} of {c.n_pairs}",
                "length": show_length(c),
                "p, length": show_p(found[decoding, name]["length"]),
                "shorter / equal / longer, %": " / ".join(
                    f"{100 * share.value:.0f}" for share in (c.shorter, c.equal, c.longer)
                ),
            }
            if c.truth is not None:
                row |= {
                    "accuracy": f"{c.truth.accuracy:.1%}",
                    "change": f"{c.truth.change:+.1p}",
                    "p, accuracy": show_p(found[decoding, name]["accuracy"]),
                    "length, both right": written(c.truth.length_both_right, "+.1%"),
                    "dense detours": f"{c.truth.dense_detours:.1f}",
                    "detours": f"{c.truth.detours:.1f}",
                    "change of detours": f"{c.truth.detour_change:+.1f}",
                }
            rows[f"{name}, {decoding}"] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def group_table(by_group: Mapping[str, Change]) -> pd.DataFrame:
    """One row per group of questions."""
    found = judged_groups(by_group)
    rows = {
        group: {
            "pairs": c.n_pairs,
            "kept": f"{100 * c.retention:.1f} %",
            **_cut_off(c),
            "length": show_length(c),
            "p, length": show_p(found[group]["length"]),
            "dense accuracy": f"{c.truth.dense_accuracy:.1%}",
            "share of dense accuracy": f"{c.truth.ratio:.1%}",
            "p, accuracy": show_p(found[group]["accuracy"]),
            "change of detours": f"{c.truth.detour_change:+.1f}",
        }
        for group, c in by_group.items()
        if c.truth is not None
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def paper_table(changes: Changes) -> pd.DataFrame:
    """What the paper reports beside what was measured here."""
    rows = {
        f"{name}, {decoding}": {
            "length, paper": length,
            "length, here": show_length(arms[name]),
            "share of full accuracy, paper": accuracy,
            "share of full accuracy, here": written(truth and truth.ratio, ".1%"),
        }
        for decoding, arms in changes.items()
        for name, (length, accuracy) in PAPER.items()
        if name in arms
        for truth in [arms[name].truth]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _cut_off(c: Change) -> dict[str, str]:
    return {"cut off": cut_off_column(c), "cut off, dense": f"{c.cut_off.n_dense} of {c.n_pairs}"}


def where_accuracy_goes(by_group: Mapping[str, Change]) -> str:
    """Which groups of questions lose accuracy, keep 98 % of it, or stay open.

    Losses are told by tests adjusted together, and what is kept by intervals that hold for all groups together.
    """
    scored = {group: c.truth for group, c in by_group.items() if c.truth is not None}
    found = judged_groups(by_group)
    lost = [g for g in scored if found[g]["accuracy"].decision == "falls"]
    kept = [g for g, truth in scored.items() if truth.ratio_together.low >= KEPT and g not in lost]
    rest = [g for g in scored if g not in kept and g not in lost]
    told = {f"Kept (at least {100 * KEPT:g} % of dense)": kept, "Lost": lost, "Open": rest}
    return " ".join(f"{what}: {'; '.join(groups)}." for what, groups in told.items() if groups)


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
    # Two claims at once: a fall and a rise by the tests, and each worse than choosing afresh, by intervals apart.
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
    for name, c in arms.items():
        if name not in reported and c.truth is None:  # of these nothing is said by accuracy either
            verdict = found[decoding, name]
            lines.append(f"{name}: {_about_length(c, verdict, 0, '')}{about_cut_off(c, verdict)}")
    if lines:
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
    return f"{c.length:+.1%}"


def _about_length(c: Change, verdict: Mapping[str, Claim], reported: int, floor: str) -> str:
    """The sign found beside the sign that the paper reports: -1 shorter, 1 longer, 0 nothing."""
    found = SIGNS[verdict["length"].decision]
    ended = "" if c.n_both == c.n_pairs else f" over the {c.n_both} of {c.n_pairs} pairs that ended"
    shown = show_length(c) + ended
    if found == 0:
        nothing = c.equal.value == 1 or c.n_both == 0
        told = show_length(c) if nothing else f"no change of length is shown ({shown})"
        if reported == 0:
            return f"{told}."
        return f"{told}; " + (floor if floor and reported == -1 else f"the paper reports {WORDS[reported]} traces.")
    if found == 1 and reported == -1 and floor:
        return f"traces get longer ({shown}); {floor}"
    if found == reported == -1 and "accuracy" in verdict and verdict["accuracy"].decision == "falls":
        return f"traces get shorter ({shown}), but right answers go with them: not what the paper reports."
    if found == reported or reported == 0:
        return f"traces get {WORDS[found]} ({shown}){', as the paper reports' * (found == reported)}."
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


def _about_detours(c: Change, truth: Answers, verdict: Mapping[str, Claim]) -> str:
    """How much of the change of length is spent on detours; empty where no trace changed its length."""
    if c.equal.value == 1 or c.n_both == 0:
        return ""
    spent = truth.words["detours"]
    told = verdict["length"].decision != "not shown"  # a share of what may be nothing means nothing
    share = spent.value / c.tokens.value if told else 0.0
    return (
        f" Detours per trace go from {truth.dense_detours.value:.1f} to {truth.detours.value:.1f} "
        f"({truth.detour_change:+.1f}): of the change of {c.tokens:+.1f} tokens, "
        f"{spent:+.1f} are spent on detours{f', or {100 * share:.0f} %' if share > 0 else ''}."
    )


def _about_accuracy(c: Answers, verdict: Mapping[str, Claim]) -> str:
    """Whether it falls or rises, by the test; and whether 98 % are kept, by an interval that holds for all together."""
    decision, shown = verdict["accuracy"].decision, f"{c.ratio:.1%} of dense"
    least = f"at least {100 * KEPT:g} % of dense are kept"
    if decision != "not shown":
        kept = f"; {least}" if c.ratio_together.low >= KEPT else ""
        return f"Accuracy {decision} ({c.change:+.1p}; {shown}{kept})."
    if c.ratio_together.low >= KEPT:
        return f"Accuracy is kept ({shown}: {least})."
    open_still = f"whether {100 * KEPT:g} % of dense are kept is open ({c.ratio:.1%})"
    return f"No change of accuracy is shown ({c.change:+.1p}), and {open_still}."


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)
    arms, greedy = n["sampled"], n["greedy"]["VisionPulse 5 %"]
    pulse = arms["VisionPulse 5 %"]
    judged, truth = pulse["judged"], pulse["truth"]
    kept = f"{100 * pulse['retention']:.1f} % of the patches at each step"

    def said(arm: dict[str, Any]) -> str:
        length, accuracy = (arm["judged"][outcome].decision for outcome in ("length", "accuracy"))
        cut = arm["cut_off"]
        counts = f", cut off {cut['n_arm']} of {arm['n_pairs']} (dense {cut['n_dense']})"
        return f"length {length} ({arm['length']:.1%}), accuracy {accuracy} ({arm['truth']['change']:.1p})" + (
            counts if cut["n_arm"] or cut["n_dense"] else ""
        )

    static = "; ".join(
        f"{name}: {said(arm)}" for name, arm in arms.items() if name.startswith(("at prefill 5", "hindsight 5"))
    )
    short = (
        f"With {kept}, sampled traces change in length by {pulse['length']:+.1%} "
        f"({CHANGED[judged['length'].decision]}) and in accuracy by {truth['change']:+.1p} "
        f"({CHANGED[judged['accuracy'].decision]})."
    )
    return Finding(
        short,
        f"Changes against dense with {kept}; lengths are of the pairs that ended. Sampled: {said(pulse)}, "
        f"{truth['ratio']:.1%} of dense; detours {truth['detour_change']:.2f} of {truth['dense_detours']:.2f} a trace. "
        f"Greedy: {said(greedy)} (dense greedy traces hold {greedy['truth']['dense_detours'].value:.2f} detours). As "
        f"many in one set for the whole trace, sampled, {static}. {adjusted(judged)}",
    )
