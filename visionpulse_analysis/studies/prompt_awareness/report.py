"""Relevance against diversity as a table and as sentences, each chosen by tests that were adjusted together."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.metrics.claims import from_json
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
    Finding,
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
        at = partial(at_budget, budget=budget)
        for arm in map(at, study.labels):
            change, row = study.arms.changes[arm], {}
            if change.truth is not None:
                row["accuracy"] = f"{100 * change.truth.accuracy.value:.0f} %"
                row["against dense"] = f"{change.truth.change:+.1p}"
                row["against random"] = f"{study.arms.advantage(arm, at(RANDOM)):+.1p}"
            row["tokens, both ended"] = ended_length(change)
            row["cut off"] = cut_off_column(change)
            row[SHARES] = f"{study.held(arm):.1%}"
            row["overlap with the oracle"] = f"{study.overlap(arm, at(ORACLE)):.2g}"
            row["with r = 0"] = f"{study.overlap(arm, at(ratio_name(study.ratios[0]))):.2g}"
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


def paper_table(study: PromptAwareness, budget: float) -> pd.DataFrame:
    """What is reported elsewhere, beside what was measured here at one budget."""
    at, names = partial(at_budget, budget=budget), names_of_ends(study)
    mix, only, diverse, truth = study.mixed, study.relevant, study.diverse, study.arms.changes[at(ORACLE)].truth

    def change(first: str, second: str) -> str:
        found = gain(study, first, second, budget)
        return f"{found:+.1p}" if truth is not None else f"{100 * found:+.1f} points of {SHARES}"

    def overlap(first: str, second: str) -> str:
        return f"{study.overlap(at(first), at(second)):.2g}, by chance {study.chance(at(first), at(second)):.2g}"

    oracle = "not known" if truth is None else f"{truth.ratio:.1%} with {100 * budget:g} %"
    rows = {
        "patches pruned": ("90 %", f"{100 * (1 - budget):g} %"),
        f"{names[mix]} against {names[diverse]}": ("matches or beats DivPrune", change(mix, diverse)),
        f"{names[only]} against random": ("worse, on medical questions", change(only, RANDOM)),
        f"{names[mix]} against {names[only]}": ("not reported", change(mix, only)),
        "best r here (chosen on these samples)": ("set by hand for each data set", best_ratios(study, budget)),
        "accuracy of the oracle, of dense": ("98 % with half of the patches, 92 % with a quarter", oracle),
        f"overlap of {names[only]} and {names[diverse]}": ("not reported", overlap(diverse, only)),
        f"overlap of {mix} with the oracle": ("not reported", overlap(mix, ORACLE)),
        **{f"overlap of {mix} with {label}": ("not reported", overlap(mix, label)) for label in OTHERS},
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["papers", "here"])


def judged_claims(study: PromptAwareness, budget: float) -> dict[tuple[str, str], Claim]:
    """What is judged at a budget, all as one family: (first, second) -> the first minus the second.

    Accuracy, or relevance held where answers are unknown; against "overlap", what an arm and the oracle both keep,
    minus that of random sets.
    """
    at, mix, only, diverse = partial(at_budget, budget=budget), study.mixed, study.relevant, study.diverse
    pairs = [(only, RANDOM), (diverse, RANDOM), (mix, diverse), (mix, only), (ORACLE, mix)]
    pairs = [(first, second) for first, second in dict.fromkeys(pairs) if first != second]
    tests = {(first, second): study.gain_test(at(first), at(second)) for first, second in pairs}
    for label in dict.fromkeys((only, diverse, mix)):
        tests[label, OVERLAP] = study.overlap_test(at(label), at(ORACLE))
    return judge(tests, f"{len(tests)} differences at {100 * budget:g} % kept")


def numbers(study: PromptAwareness, budget: float) -> dict[str, Any]:
    """Every arm, and what is judged at one budget, JSON-ready; ``judged`` : (first, second, claim)."""
    judged = [(*names, claim.to_json()) for names, claim in judged_claims(study, budget).items()]
    return {**study.numbers(), "compared": budget, "judged": judged}


def verdicts(study: PromptAwareness, budget: float) -> str:
    """What the comparison says at one budget, as Markdown; each sentence is chosen by its adjusted test."""
    at, judged = partial(at_budget, budget=budget), judged_claims(study, budget)
    what = "accuracy" if study.arms.known else SHARES
    names = {**names_of_ends(study), RANDOM: "random patches", ORACLE: "the oracle"}
    lines = [f"{next(iter(judged.values())).family}. {RULE}"]
    for (first, second), claim in judged.items():
        if second == OVERLAP:
            overlap, chance = study.overlap(at(first), at(ORACLE)), study.chance(at(first), at(ORACLE))
            lines.append(
                f"What {names[first]} keeps and what the oracle keeps ({overlap:.2g}; random sets {chance:.2g}) "
                f"{OVERLAPS[claim.decision]}."
            )
            continue
        beside = ""
        if (first, second) == (study.mixed, study.diverse) and claim.decision != "not shown":
            beside = ", as the paper says" if claim.decision == "rises" else ", unlike in the paper"
        if first == ORACLE and claim.decision == "falls":
            beside = ", so the oracle is no upper bound here"
        said = f"{names[first]} against {names[second]}: {what} {claim.estimate:+.1p}"
        lines.append(f"{said}, {GAINS[claim.decision]}{beside}.")
    lines += cut_off_sentences({at(label): study.arms.changes[at(label)] for label in study.labels}, study.arms.limit)
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def names_of_ends(study: PromptAwareness) -> dict[str, str]:
    """The largest, the smallest and the mixed core share, by what they stand for."""
    least, most = min(study.ratios), max(study.ratios)
    return {
        study.mixed: f"both ({study.mixed})",
        study.diverse: f"{'diversity alone' if least == 0 else 'the smallest core'} ({study.diverse})",
        study.relevant: f"{'relevance alone' if most == 1 else 'the largest core'} ({study.relevant})",
    }


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)
    known, kept = ("r = 0", "r = 0.6", "r = 1", RANDOM, ORACLE), f"{100 * n['compared']:g} %"
    arms = {label: n[f"{label}, {kept}"] for label in known if f"{label}, {kept}" in n}
    right = {label: f"{label} {written(arm['accuracy'], '.1%')}" for label, arm in arms.items()}
    cut = {label: arm["cut_off"]["n_arm"] for label, arm in arms.items()}
    accuracy = "; ".join(right[label] + f" ({cut[label]} cut off)" * bool(cut[label]) for label in arms)
    judged = {(first, second): claim for first, second, claim in n["judged"]}
    claims = [f"{one} minus {other} {claim.decision}" for (one, other), claim in judged.items() if other != OVERLAP]
    against_chance = {"rises": "above chance", "falls": "below chance", "not shown": "no difference from chance shown"}
    overlaps = "; ".join(
        f"{label} {arms[label]['overlap_with_oracle']:.2f}, {against_chance[judged[label, OVERLAP].decision]}"
        for label in arms
        if (label, OVERLAP) in judged
    )
    return Finding(
        f"Accuracy with {kept} of the patches, chosen before the model by the question (r = 1), by what covers the "
        f"image (r = 0) or both: {'; '.join(right.values())}.",
        f"Accuracy with {kept} of the patches, chosen before the model: {accuracy}. By exact tests, adjusted by Holm "
        f"among {n['judged'][0][2].family}: {', '.join(claims)}. Overlap of what is kept with what the oracle keeps: "
        f"{overlaps}.",
    )
