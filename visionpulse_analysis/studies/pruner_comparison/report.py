"""The comparison of all pruners as a table and as sentences, each chosen by tests that were adjusted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.studies.frontier.measure import PULSE
from visionpulse_analysis.studies.pruner_comparison.measure import REFERENCE, Comparison, all_rivals, arm_name
from visionpulse_analysis.studies.pruner_comparison.settings import near
from visionpulse_analysis.studies.shared.arms import ACCURACY, CUT_OFF, LENGTH, Judged, judge_changes
from visionpulse_analysis.studies.shared.sentences import (
    COMPARED,
    Finding,
    cut_off_column,
    cut_off_sentences,
    ended_length,
    family_sentence,
    listed,
    still_open,
)
from visionpulse_analysis.studies.step_dependence.fixed_sets import NAMED

NAMES = {ACCURACY: "accuracy", LENGTH: "length", CUT_OFF: "how many are cut off"}
WORDS = {
    ACCURACY: {
        "falls": "accuracy falls",
        "rises": "accuracy rises",
        "not shown": "a change of accuracy is not shown",
    },
    LENGTH: {
        "falls": "traces that end get shorter",
        "rises": "traces that end get longer",
        "not shown": "a change of length of traces that end is not shown",
    },
    CUT_OFF: {
        "falls": "fewer traces are cut off at the limit",
        "rises": "more traces are cut off at the limit",
        "not shown": "a change of how many are cut off is not shown",
    },
}
# What the paper reports at 10 %: of FastV, LOOK-M and VisionZip, which choose at prefill, and of VisionPulse.
PAPER_PREFILL, PAPER_PULSE = {ACCURACY: "falls", LENGTH: "rises"}, {LENGTH: "falls"}


def judge_rivals(compared: Comparison) -> Judged:
    """Every arm against dense, one family of tests."""
    return judge_changes(compared.arms.pruned, relative=False)


def table(compared: Comparison) -> pd.DataFrame:
    """One row per arm; everything after the shares kept is paired with dense."""
    rows, judged = {}, judge_rivals(compared)
    for label, names in compared.groups.items():
        for name in names:
            change = compared.arms.changes[name]
            rival = all_rivals()[label]
            row = {"pruner": rival.name, "settled": "at prefill" if rival.at_prefill else "at steps"}
            row["kept"] = f"{100 * compared.kept[name]:.1f} %"
            row["at last layer"] = f"{100 * change.retention:.1f} %"
            if change.truth is not None:
                row["accuracy"] = f"{100 * change.truth.accuracy.value:.0f} %"
                row["change"] = f"{change.truth.change:+.1p}"
            row["tokens, both ended"] = ended_length(change)
            row["cut off"] = cut_off_column(change)
            row["shown"] = shown(judged[name])
            costs = {"FLOPs": "flops", "KV bytes read": "kv_bytes_read", "peak KV bytes": "peak_kv_bytes"}
            row |= {column: f"{compared.cost_change(name, cost):+.1%}" for column, cost in costs.items()}
            rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def shown(verdicts: Mapping[str, Claim]) -> str:
    """What is shown of an arm by the adjusted tests: "accuracy falls, cut off rises"; empty if nothing is."""
    decided = {outcome: verdict.decision for outcome, verdict in verdicts.items()}
    return ", ".join(f"{outcome} {how}" for outcome, how in decided.items() if how != "not shown")


def at_prefill(compared: Comparison, budget: float) -> list[str]:
    """Arms of methods that settle at prefill what is visible, at this budget; not chance and the oracle.

    A method that no parameter sets to a budget takes part where its own setting keeps about that share (`near`).
    """
    arms = compared.arms.changes
    methods = [n for n, r in all_rivals().items() if r.at_prefill and r.family != REFERENCE]
    names = []
    for label in methods:
        at, own = arm_name(label, budget), arm_name(label, None)
        unmatched = own in arms and all_rivals()[label].matched is None
        names += [at] if at in arms else [own] if unmatched and near(compared.kept[own], budget) else []
    return names


def verdicts(compared: Comparison, budget: float) -> list[str]:
    """Where the paper's ordering appears and where not, and how VisionPulse compares at this budget."""
    names, judged = at_prefill(compared, budget), judge_rivals(compared)
    if not names:
        return [f"Nothing was pruned at prefill to {100 * budget:g} %; add it to the budgets."]
    changes = {name: compared.arms.changes[name] for name in names}
    return [
        family_sentence(judged),
        *(f"{listed(members)}: {ending}." for ending, members in ordering(compared, budget).items()),
        *cut_off_sentences(changes, compared.arms.limit),
        *_about_pulse(compared, budget, judged),
    ]


def ordering(compared: Comparison, budget: float) -> dict[str, list[str]]:
    """What appears of the paper's ordering -> arms that settle at prefill what is visible."""
    judged, groups = judge_rivals(compared), dict[str, list[str]]()
    for name in at_prefill(compared, budget):
        groups.setdefault(ending(judged[name], PAPER_PREFILL), []).append(name)
    return groups


def ending(verdicts: Mapping[str, Claim], paper: Mapping[str, str]) -> str:
    """What the decisions on one arm say, beside what the paper reports (outcome -> decision)."""
    if all(verdict.decision == "not shown" for verdict in verdicts.values()):
        return f"no change is shown, of {' or of '.join(NAMES[outcome] for outcome in verdicts)}"
    said = []
    for outcome, verdict in verdicts.items():
        beside = ""
        if outcome in paper and verdict.decision != "not shown":
            beside = ", as in the paper" if verdict.decision == paper[outcome] else ", unlike in the paper"
        said.append(WORDS[outcome][verdict.decision] + beside)
    return "; ".join(said)


def against_others(compared: Comparison, budget: float) -> dict[str, Claim]:
    """Accuracy of VisionPulse minus that of every other arm at this budget, one family; empty without known answers."""
    pulse = arm_name(PULSE, budget)
    others = [arm_name(label, budget) for label in compared.groups if label != PULSE] + [arm_name(NAMED, None)]
    pairs = [(pulse, name) for name in others if name in compared.arms.changes]
    return {over: one for (_, over), one in compared.arms.judge_accuracy(pairs).items()}


def numbers(compared: Comparison, budget: float) -> dict[str, Any]:
    """Every arm, and what the sentences about one budget say, JSON-ready."""
    judged, found = judge_rivals(compared), compared.numbers()
    for name, verdicts_of in judged.items():
        found[name]["verdicts"] = as_json(verdicts_of)
    return {
        "arms": found,
        "compared": budget,
        "limit": compared.arms.limit,
        "ordering": ordering(compared, budget),
        "VisionPulse against": as_json(against_others(compared, budget)),
    }


def _about_pulse(compared: Comparison, budget: float, judged: Judged) -> list[str]:
    """VisionPulse against dense, and in accuracy against every other arm at this budget."""
    pulse, others = arm_name(PULSE, budget), against_others(compared, budget)
    lines = []
    if pulse in judged:
        verdict = judged[pulse].get(ACCURACY)
        left = "" if verdict is None or verdict.decision != "not shown" else f" ({still_open(verdict.estimate)})"
        lines.append(f"{pulse}: {ending(judged[pulse], PAPER_PULSE)}{left}.")
    groups = {how: [n for n, one in others.items() if one.decision == how] for how in COMPARED}
    told = [f"{COMPARED[how]} {listed(members)}" for how, members in groups.items() if members]
    if told:
        lines.append(f"Of {len(others)} differences in accuracy, judged together: {pulse} is {'; '.join(told)}.")
    return lines


def not_matched(compared: Comparison, budgets: Sequence[float]) -> list[str]:
    """Which methods have no setting that keeps about a budget, one line per budget of which that is so."""
    lines = []
    for budget in budgets:
        missing = [label for label, names in compared.groups.items() if arm_name(label, budget) not in names]
        lines += [f"{100 * budget:g} % is not kept by any setting of {listed(missing)}."] if missing else []
    return lines


def own_retention(compared: Comparison) -> list[str]:
    """Arms at settings of their own, with what they kept."""
    names = [name for group in compared.groups.values() for name in group if name.endswith(arm_name("", None))]
    return [f"{name}: {100 * compared.kept[name]:.1f} % kept" for name in names]


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)
    share_kept = f" {100 * n['compared']:g} %"
    accuracy = n["arms"][f"{PULSE}{share_kept}"]["verdicts"]["accuracy"]
    changes = f"With{share_kept} kept, {PULSE} changes accuracy by {accuracy.estimate:.1p}"

    def short(arm: str) -> str:
        return arm.replace(", own setting", "").replace(share_kept, "")

    said = [f"{listed([short(arm) for arm in arms])}: {ending}" for ending, arms in n["ordering"].items()]
    lines = [
        f"{changes}. Methods that choose at prefill, with as many kept (exact tests, Holm among the {accuracy.size} of "
        f"{accuracy.family}): {'. '.join(line[0].upper() + line[1:] for line in said)}."
    ]
    groups: dict[str, list[str]] = {}
    for over, claim in n["VisionPulse against"].items():
        groups.setdefault(COMPARED[claim.decision], []).append(short(over))
    if groups:
        told = "; ".join(f"{how} {listed(names)}" for how, names in groups.items())
        lines.append(f"{PULSE} is {told} ({len(n['VisionPulse against'])} differences in accuracy).")
        told = listed([f"{how} {len(names)}" for how, names in groups.items()])
        changes += f"; it is {told} of {len(n['VisionPulse against'])} other ways to choose"
    of_prefill = {short(arm): n["arms"][arm]["change"] for arms in n["ordering"].values() for arm in arms}
    cut = {arm: change for arm, change in of_prefill.items() if change["cut_off"]["n_arm"]}
    if cut:
        counts = ", ".join(f"{arm} {change['cut_off']['n_arm']}" for arm, change in cut.items())
        n_pairs = next(iter(cut.values()))["n_pairs"]
        lines.append(f"Cut off at the limit of {n['limit']} tokens, of {n_pairs}: {counts}.")
    if lengths := [f"{arm} {change['tokens']:.2f}" for arm, change in cut.items() if change["n_both"]]:
        lines.append(f"Change in tokens where both traces ended: {'; '.join(lengths)}.")
    return Finding(f"{changes}.", " ".join(lines))
