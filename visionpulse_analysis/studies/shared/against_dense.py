"""All arms of a study against dense decoding, judged together: right answers, lengths, and traces that never ended."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from visionpulse_analysis.metrics.statistics import Claim, Estimate, judge
from visionpulse_analysis.studies.shared.intervals import show
from visionpulse_analysis.studies.trace_length.measure import Change

ACCURACY, LENGTH, CUT_OFF = OUTCOMES = ("accuracy", "length", "cut off")
COMPARED = {"rises": "more accurate than", "falls": "less accurate than", "not shown": "not told apart from"}
Judged = dict[str, dict[str, Claim]]  # arm -> one of `OUTCOMES` -> its verdict
RULE = "Exact tests over samples decide, adjusted by Holm among all of these; an interval in brackets is of one alone."


def judge_arms(changes: Mapping[str, Change]) -> Judged:
    """Judge every outcome of every arm, all of them as one family; without known answers there is no accuracy.

    Lengths are those of the pairs in which both traces ended.
    """
    tests: dict[tuple[str, str], tuple[Estimate, float]] = {}
    for arm, change in changes.items():
        if change.truth is not None:
            tests[arm, ACCURACY] = (change.truth.change, change.truth.p)
        tests[arm, LENGTH] = (change.tokens, change.p)
        tests[arm, CUT_OFF] = (change.cut_off.change, change.cut_off.p)
    outcomes = [outcome for outcome in OUTCOMES if any(outcome == of_test for _, of_test in tests)]
    found = judge(tests, f"{listed(outcomes)} of {len(changes)} arms against dense")
    return {arm: {outcome: found[arm, outcome] for outcome in outcomes if (arm, outcome) in found} for arm in changes}


def family_sentence(judged: Judged) -> str:
    """Which tests were adjusted together, and what decides."""
    one = next(iter(next(iter(judged.values())).values()))
    return f"{one.family[0].upper()}{one.family[1:]}: {one.size} tests. {RULE} Lengths are of pairs that both ended."


def still_open(effect: Estimate) -> str:
    """What loss an effect that is not shown may still be, by its interval: "a loss of up to 9.6 points is open"."""
    if np.isnan(effect.low):
        return "how large a loss is open cannot be said of so few samples"
    if effect.low >= 0:
        return "its interval leaves no loss"
    return f"a loss of up to {-100 * effect.low:.1f} points is open"


def cut_off_sentences(changes: Mapping[str, Change], limit: int | None) -> list[str]:
    """Which arms have traces without an end, and what the pairs that ended say of the length of these arms.

    limit : of tokens; None where no trace was cut off.
    """
    cut = {arm: change for arm, change in changes.items() if change.cut_off.n_arm}
    some = next(iter(changes.values()), None)
    if some is None:
        return []
    where = "" if limit is None else f" at the limit of {limit} tokens"
    counts = [f"{arm} {change.cut_off.n_arm}" for arm, change in cut.items()]
    lines = [f"Cut off{where}, of {some.n_pairs}: {', '.join([f'dense {some.cut_off.n_dense}', *counts])}."]
    if cut:
        ended = [f"{arm}: {ended_length(change)}" for arm, change in cut.items()]
        lines.append(f"Tokens more than dense, over the pairs in which both traces ended: {'; '.join(ended)}.")
    return lines


def ended_length(change: Change) -> str:
    """Change in tokens over the pairs that ended, and how much longer the rest is at least."""
    if change.n_both == 0:
        ended = "no such pair"
    else:
        ended = f"{show(change.tokens, 1, '')} ({change.n_both} pairs)"
    at_least = change.cut_off.at_least
    return ended if np.isnan(at_least) else f"{ended}, the rest at least {at_least:+.0f}, as far as the limit allows"


def listed(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
