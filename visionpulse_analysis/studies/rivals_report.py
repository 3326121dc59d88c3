"""The comparison of all pruners as a table and as sentences, each chosen by where whole intervals lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from visionpulse_analysis.studies.drawing import show
from visionpulse_analysis.studies.frontier import advantage
from visionpulse_analysis.studies.rival_settings import near
from visionpulse_analysis.studies.rivals import REFERENCE, Comparison, all_rivals, arm_name
from visionpulse_analysis.studies.three_stages_report import side
from visionpulse_analysis.studies.trace_length import DENSE, Change

PULSE = "VisionPulse"
# (accuracy falls, side of the length) -> what appears of the paper's ordering
ENDINGS = {
    (True, "above"): "the paper's ordering appears in full: accuracy falls and traces get longer",
    (True, "open"): "accuracy falls, as in the paper; a change of length is not shown",
    (True, "below"): "accuracy falls, as in the paper, but traces get shorter",
    (False, "above"): "traces get longer, as in the paper; a loss of accuracy is not shown",
    (False, "open"): "neither a loss of accuracy nor a change of length is shown",
    (False, "below"): "traces get shorter, unlike in the paper, and a loss of accuracy is not shown",
}
UNKNOWN = {
    "above": "traces get longer, as in the paper",
    "open": "a change of length is not shown",
    "below": "traces get shorter, unlike in the paper",
}


def table(compared: Comparison) -> pd.DataFrame:
    """One row per arm; everything after the shares kept is paired with dense."""
    rows = {}
    for label, names in compared.arms.items():
        for name in names:
            point = compared.frontier.points[name]
            rival = all_rivals()[label]
            row = {"pruner": rival.name, "settled": "at prefill" if rival.at_prefill else "at steps"}
            row["kept"] = f"{100 * compared.kept[name]:.1f} %"
            row["at last layer"] = f"{100 * point.retention:.1f} %"
            if point.change.truth is not None:
                row["accuracy"] = f"{100 * point.change.truth.accuracy.estimate:.0f} %"
                row["change, points"] = show(point.change.truth.change, unit="")
            row["length"] = show(point.change.length)
            row["cut off"] = f"{point.change.cut_off.n_arm} of {point.change.n_pairs}"
            row["FLOPs"] = show(compared.cost_change(name, "flops"))
            row["KV bytes read"] = show(compared.cost_change(name, "kv_bytes_read"))
            row["peak KV bytes"] = show(compared.cost_change(name, "peak_kv_bytes"))
            rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def at_prefill(compared: Comparison, budget: float) -> list[str]:
    """Arms of methods that settle at prefill what is visible, at this budget; not chance and the oracle.

    A method that no parameter sets to a budget takes part where its own setting keeps about that share (`near`).
    """
    points = compared.frontier.points
    methods = [n for n, r in all_rivals().items() if r.at_prefill and r.family != REFERENCE]
    names = []
    for label in methods:
        at, own = arm_name(label, budget), arm_name(label, None)
        unmatched = own in points and all_rivals()[label].matched is None
        names += [at] if at in points else [own] if unmatched and near(compared.kept[own], budget) else []
    return names


def verdicts(compared: Comparison, budget: float) -> list[str]:
    """Where the paper's ordering appears and where not."""
    names = at_prefill(compared, budget)
    if not names:
        return [f"Nothing was pruned at prefill to {100 * budget:g} %; add it to the budgets."]
    lines = [f"{_list(members)}: {ending}." for ending, members in ordering(compared, budget).items()]
    return lines + _against_pulse(compared, budget)


def ordering(compared: Comparison, budget: float) -> dict[str, list[str]]:
    """What appears of the paper's ordering -> arms that settle at prefill what is visible."""
    groups: dict[str, list[str]] = {}
    for name in at_prefill(compared, budget):
        groups.setdefault(_ending(compared.frontier.points[name].change), []).append(name)
    return groups


def numbers(compared: Comparison, budget: float) -> dict[str, Any]:
    """Every arm, and what the sentences about one budget say, JSON-ready."""
    return {"arms": compared.numbers(), "compared": budget, "ordering": ordering(compared, budget)}


def _ending(change: Change) -> str:
    length = side(change.length, 0.0)
    if change.truth is None:
        return UNKNOWN[length]
    return ENDINGS[side(change.truth.change, 0.0) == "below", length]


def _against_pulse(compared: Comparison, budget: float) -> list[str]:
    """How VisionPulse compares in accuracy with every other arm at this budget."""
    pulse = arm_name(PULSE, budget)
    others = [arm_name(label, budget) for label in compared.arms if label != PULSE]
    groups: dict[str, list[str]] = {"above": [], "below": [], "open": []}
    for name in others:
        gain = advantage(compared.frontier, pulse, name) if name in compared.frontier.points else None
        if gain is not None:
            groups[side(gain, 0.0)].append(name)
    words = {"above": "is more accurate than", "below": "is less accurate than", "open": "cannot be told apart from"}
    return [f"{pulse} {words[where]} {_list(members)}." for where, members in groups.items() if members]


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def not_matched(compared: Comparison, budgets: Sequence[float]) -> list[str]:
    """Which methods have no setting that keeps about a budget, one line per budget of which that is so."""
    lines = []
    for budget in budgets:
        missing = [label for label, names in compared.arms.items() if arm_name(label, budget) not in names]
        lines += [f"{100 * budget:g} % is not kept by any setting of {_list(missing)}."] if missing else []
    return lines


def own_retention(compared: Comparison) -> list[str]:
    """Arms at settings of their own, with what they kept."""
    names = [name for group in compared.arms.values() for name in group if name.endswith(arm_name("", None))]
    return [f"{name}: {100 * compared.kept[name]:.1f} % kept" for name in names if name != DENSE]
