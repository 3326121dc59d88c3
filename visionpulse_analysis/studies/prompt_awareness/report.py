"""Relevance against diversity as a table and as sentences, each chosen by tests that were adjusted together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.metrics.statistics import Claim, Estimate, judge
from visionpulse_analysis.studies.prompt_awareness.measure import (
    ORACLE,
    OTHERS,
    RANDOM,
    PromptAwareness,
    at_budget,
    ratio_name,
)
from visionpulse_analysis.studies.shared.sentences import (
    RULE,
    cut_off_column,
    cut_off_sentences,
    ended_length,
    listed,
    written,
)

SHARES = "share of the relevance held"  # what is compared where the answers are not known
OVERLAP = "overlap"
GAINS = {"rises": "which is more", "falls": "which is less", "not shown": "a difference is not shown"}
OVERLAPS = {
    "rises": "overlap more than random sets do",
    "falls": "overlap less than random sets do",
    "not shown": "are not shown to overlap otherwise than random sets do",
}


def table(study: PromptAwareness) -> pd.DataFrame:
    """One row per arm; differences are paired by sample."""
    rows = {}
    for budget in study.budgets:
        random, oracle = at_budget(RANDOM, budget), at_budget(ORACLE, budget)
        for arm in (at_budget(label, budget) for label in study.labels):
            change = study.arms.changes[arm]
            row = {}
            if change.truth is not None:
                row["accuracy"] = f"{100 * change.truth.accuracy.value:.0f} %"
                row["against dense"] = f"{change.truth.change:+.1p}"
                row["against random"] = written(study.arms.advantage(arm, random), "+.1p")
            row["tokens, both ended"] = ended_length(change)
            row["cut off"] = cut_off_column(change)
            row[SHARES] = f"{study.held(arm):.1%}"
            row["overlap with the oracle"] = f"{study.overlap(arm, oracle):.2g}"
            row["with r = 0"] = f"{study.overlap(arm, at_budget(ratio_name(study.ratios[0]), budget)):.2g}"
            rows[arm] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def gain(study: PromptAwareness, first: str, second: str, budget: float) -> Estimate:
    """Accuracy of one label minus another's at a budget, or, without known answers, relevance held."""
    return study.gain_test(at_budget(first, budget), at_budget(second, budget))[0]


def best_ratios(study: PromptAwareness, budget: float) -> str:
    """The core share that held most accuracy, or relevance, and those that are not told apart from it."""
    names = [ratio_name(ratio) for ratio in study.ratios]
    best = names[int(np.argmax([gain(study, name, RANDOM, budget).value for name in names]))]
    others = [name for name in names if name != best]
    tests = {name: study.gain_test(at_budget(name, budget), at_budget(best, budget)) for name in others}
    judged = judge(tests, f"{len(tests)} core shares against the best") if tests else {}
    alike = [name for name, one in judged.items() if one.decision == "not shown"]
    return f"{best}; not told apart from it: {listed(alike)}" if alike else best


def mixed(study: PromptAwareness) -> str:
    """The core share nearest to 0.6, that of the public re-implementations."""
    return ratio_name(min(study.ratios, key=lambda ratio: abs(ratio - 0.6)))


def paper_table(study: PromptAwareness, budget: float) -> pd.DataFrame:
    """What is reported elsewhere, beside what was measured here at one budget."""
    mix, only, diverse = mixed(study), ratio_name(max(study.ratios)), ratio_name(min(study.ratios))
    oracle, truth = at_budget(ORACLE, budget), study.arms.changes[at_budget(ORACLE, budget)].truth
    kept = [at_budget(label, budget) for label in (diverse, only)]
    names = names_of_ends(study)
    unit = "points" if truth is not None else f"points of {SHARES}"

    def change(first: str, second: str) -> str:
        return f"{100 * gain(study, first, second, budget):+.1f} {unit}"

    rows = {
        "patches pruned": ("90 %", f"{100 * (1 - budget):g} %"),
        f"{names[mix]} against {names[diverse]}": (
            "matches or beats DivPrune",
            change(mix, diverse),
        ),
        f"{names[only]} against random": ("worse, on medical questions", change(only, RANDOM)),
        f"{names[mix]} against {names[only]}": ("not reported", change(mix, only)),
        "best r here (chosen on these samples)": ("set by hand for each data set", best_ratios(study, budget)),
        "accuracy of the oracle, of dense": (
            "98 % with half of the patches, 92 % with a quarter",
            "not known" if truth is None else f"{truth.ratio:.1%} with {100 * budget:g} %",
        ),
        f"overlap of {names[only]} and {names[diverse]}": (
            "not reported",
            f"{study.overlap(*kept):.2g}, by chance {study.chance(*kept):.2g}",
        ),
        f"overlap of {mix} with the oracle": (
            "not reported",
            f"{study.overlap(at_budget(mix, budget), oracle):.2g}, "
            f"by chance {study.chance(at_budget(mix, budget), oracle):.2g}",
        ),
        **{
            f"overlap of {mix} with {label}": (
                "not reported",
                f"{study.overlap(at_budget(mix, budget), at_budget(label, budget)):.2g}",
            )
            for label in OTHERS
        },
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["papers", "here"])


def judged_claims(study: PromptAwareness, budget: float) -> dict[tuple[str, str], Claim]:
    """What is judged at a budget, all as one family: (first, second) -> the first minus the second.

    Accuracy, or relevance held where answers are unknown; against "overlap", what an arm and the oracle both keep,
    minus that of random sets.
    """
    mix, only, diverse = mixed(study), ratio_name(max(study.ratios)), ratio_name(min(study.ratios))
    pairs = [(only, RANDOM), (diverse, RANDOM), (mix, diverse), (mix, only), (ORACLE, mix)]
    pairs = [names for names in dict.fromkeys(pairs) if names[0] != names[1]]
    tests = {names: study.gain_test(*(at_budget(name, budget) for name in names)) for names in pairs}
    for label in dict.fromkeys((only, diverse, mix)):
        tests[label, OVERLAP] = study.overlap_test(at_budget(label, budget), at_budget(ORACLE, budget))
    return judge(tests, f"{len(tests)} differences at {100 * budget:g} % kept")


def numbers(study: PromptAwareness, budget: float) -> dict[str, Any]:
    """Every arm, and what is judged at one budget, JSON-ready; ``judged`` : (first, second, verdict)."""
    judged = [(*names, verdict.to_json()) for names, verdict in judged_claims(study, budget).items()]
    return {**study.numbers(), "compared": budget, "judged": judged}


def verdicts(study: PromptAwareness, budget: float) -> str:
    """What the comparison says at one budget, as Markdown; each sentence is chosen by its adjusted test."""
    judged = judged_claims(study, budget)
    what = "accuracy" if study.arms.known else SHARES
    mix, diverse = mixed(study), ratio_name(min(study.ratios))
    names = {**names_of_ends(study), RANDOM: "random patches", ORACLE: "the oracle"}
    lines = [f"{next(iter(judged.values())).family}. {RULE}"]
    for (first, second), verdict in judged.items():
        if second == OVERLAP:
            overlap = study.overlap(at_budget(first, budget), at_budget(ORACLE, budget))
            chance = study.chance(at_budget(first, budget), at_budget(ORACLE, budget))
            lines.append(
                f"What {names[first]} keeps and what the oracle keeps ({overlap:.2g}; random sets {chance:.2g}) "
                f"{OVERLAPS[verdict.decision]}."
            )
            continue
        claim = f"{names[first]} against {names[second]}: {what} {verdict.estimate:+.1p}"
        lines.append(f"{claim}, {GAINS[verdict.decision]}{_beside(first, second, mix, diverse, verdict)}.")
    arms = [at_budget(label, budget) for label in study.labels]
    lines += cut_off_sentences({arm: study.arms.changes[arm] for arm in arms}, study.arms.limit)
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def names_of_ends(study: PromptAwareness) -> dict[str, str]:
    """The largest, the smallest and the mixed core share, by what they stand for."""
    least, most = min(study.ratios), max(study.ratios)
    return {
        mixed(study): f"both ({mixed(study)})",
        ratio_name(least): f"{'diversity alone' if least == 0 else 'the smallest core'} ({ratio_name(least)})",
        ratio_name(most): f"{'relevance alone' if most == 1 else 'the largest core'} ({ratio_name(most)})",
    }


def _beside(first: str, second: str, mix: str, diverse: str, verdict: Claim) -> str:
    """What the paper says of the same difference, or what it means for the oracle."""
    if (first, second) == (mix, diverse) and verdict.decision != "not shown":
        return ", as the paper says" if verdict.decision == "rises" else ", unlike in the paper"
    if first == ORACLE and verdict.decision == "falls":
        return ", so the oracle is no upper bound here"
    return ""
