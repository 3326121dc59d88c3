"""What the frontier shows, in tables and in sentences chosen by tests that were adjusted together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.metrics.statistics import Claim
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.frontier.measure import PULSE, judged_pairs
from visionpulse_analysis.studies.shared.arms import ACCURACY, CUT_OFF, LENGTH, OUTCOMES, Arms, Judged, judge_changes
from visionpulse_analysis.studies.shared.sentences import (
    COMPARED,
    RULE,
    Finding,
    cut_off_column,
    cut_off_sentences,
    family_sentence,
    listed,
    still_open,
    written,
)

# outcome -> decision -> what is said of the shares at which it was taken
AT_SHARES = {
    ACCURACY: {"falls": "accuracy falls at", "rises": "accuracy rises at"},
    LENGTH: {"falls": "traces that end get shorter at", "rises": "traces that end get longer at"},
    CUT_OFF: {"falls": "fewer traces are cut off at", "rises": "more traces are cut off at"},
}
# What follows from VisionPulse against one other selection.
FOLLOWS = {
    "hindsight": {
        "rises": "a choice at each step is worth more than one set for all steps, even if chosen in hindsight",
        "falls": "one set for all steps, chosen in hindsight, is worth more than a choice at each step",
        "not shown": "that one set for all steps, chosen in hindsight, would not do is not shown",
    },
    "last step only": {
        "rises": "choosing afresh is worth more than keeping to the choice of the step before",
        "falls": "the choice of the step before is better than choosing afresh",
        "not shown": "that the choice of the step before would not do is not shown",
    },
    "random": {
        "rises": "which patches are kept matters, and the attention chooses better than chance",
        "falls": "which patches are kept matters, and the attention chooses worse than chance",
        "not shown": "that it matters which patches are kept is not shown",
    },
}


def table(measured: Arms, arms: Iterable[str]) -> pd.DataFrame:
    """One row per arm."""
    rows = {}
    for name in arms:
        change = measured.changes[name]
        rows[name] = {
            "kept": f"{100 * change.retention:.1f} %",
            "tokens, both ended": f"{change.arm_length:.1f}",
            "length against dense": f"{change.length:+.1%}",
            "cut off": cut_off_column(change),
            "overlap of consecutive sets": f"{measured.rows(name)['overlap'].mean():.2f}",
        }
        if change.truth is not None:
            rows[name] |= {"accuracy": f"{change.truth.accuracy:.1%}"}
    return pd.DataFrame.from_dict(rows, orient="index")


def advantage_table(measured: Arms, budgets: Sequence[float], over: Sequence[str]) -> pd.DataFrame:
    """Accuracy of VisionPulse minus that of other selections at equal retention, in points."""
    shares = [f"{100 * budget:g} %" for budget in budgets]
    return pd.DataFrame(
        {
            f"{share} kept": {
                f"{PULSE} minus {other}": written(measured.advantage(f"{PULSE} {share}", f"{other} {share}"), "+.1p")
                for other in over
            }
            for share in shares
        }
    )


def verdicts(measured: Arms, shares: Iterable[str], budgets: Sequence[float], knobs: Mapping[str, Pruner]) -> list[str]:
    """What the frontier shows, each sentence chosen by its test.

    shares : the arms of one pruner at several budgets, of which the first sentences speak.
    """
    changes = {name: measured.changes[name] for name in shares}
    lines = _about_shares(judge_changes(changes, relative=False)) if changes else []
    lines += cut_off_sentences(changes, measured.limit)
    if not measured.known:
        return [*lines, "Without known answers only lengths can be compared; accuracy is left out."]
    return lines + _about_pairs(judged_pairs(measured, budgets, knobs))


def _about_shares(judged: Judged) -> list[str]:
    """At which shares an outcome changes against dense, and what loss is open where none is shown."""
    told = []
    for outcome in OUTCOMES:
        for decision, words in AT_SHARES[outcome].items():
            found = {name: of_arm[outcome].decision for name, of_arm in judged.items() if outcome in of_arm}
            names = [name for name, decided in found.items() if decided == decision]
            told += [f"{words} {listed(names)}"] if names else []
    lines = [family_sentence(judged), f"Against dense, {'; '.join(told) or 'no change is shown at any share'}."]
    accuracy = {name: of_arm[ACCURACY] for name, of_arm in judged.items() if ACCURACY in of_arm}
    left = [f"{name}: {still_open(one.estimate)}" for name, one in accuracy.items() if one.decision == "not shown"]
    return [*lines, f"Where no change of accuracy is shown: {'; '.join(left)}."] if left else lines


def _about_pairs(judged: Mapping[tuple[str, str], Claim]) -> list[str]:
    """Every difference with its interval, and what follows from those that were made for that."""
    if not judged:
        return []
    one = next(iter(judged.values()))
    lines = [f"{one.family[0].upper()}{one.family[1:]}. {RULE}"]
    for (arm, over), verdict in judged.items():
        selection = next((name for name in FOLLOWS if over == name or over.startswith(f"{name} ")), None)
        follows = f": {FOLLOWS[selection][verdict.decision]}" if selection and arm.startswith(PULSE) else ""
        lines.append(f"{arm} is {COMPARED[verdict.decision]} {over} ({verdict.estimate:+.1p}){follows}.")
    return lines


def finding(numbers: dict[str, Any]) -> Finding:
    judged: dict[str, dict[str, Claim]] = {
        arm: others for arm, others in from_json(numbers["against"]).items() if arm.startswith(PULSE)
    }
    lines = []
    for arm, others in judged.items():
        by_decision: dict[str, list[str]] = {}
        for over, claim in others.items():
            by_decision.setdefault(claim.decision, []).append(f"{over} ({claim.estimate:.1p})")
        told = [f"{COMPARED[how]} {listed(names)}" for how, names in by_decision.items()]
        lines.append(f"{arm} is {'; '.join(told)}.")
    arm, others = list(judged.items())[-1]
    compared = [
        f"{COMPARED[claim.decision]} {over} ({claim.estimate:.1p})"
        for over, claim in others.items()
        if over.startswith(("random", "hindsight"))
    ]
    family = next(iter(others.values())).family
    return Finding(
        f"In its answers {arm} is {' and '.join(compared)}.",
        f"{' '.join(lines)} (Exact tests, adjusted among {family}.)",
    )
