"""Relevance against diversity as a table and as sentences, each chosen by where whole intervals lie."""

from __future__ import annotations

import numpy as np
import pandas as pd

from visionpulse_analysis.statistics import Interval
from visionpulse_analysis.studies.drawing import show
from visionpulse_analysis.studies.prompt_awareness import (
    ORACLE,
    OTHERS,
    RANDOM,
    PromptAwareness,
    at_budget,
    ratio_name,
)
from visionpulse_analysis.studies.three_stages_report import sentence, side, span

SHARES = "share of the relevance held"  # what is compared where the answers are not known


def table(study: PromptAwareness) -> pd.DataFrame:
    """One row per arm; differences are paired by sample."""
    rows = {}
    for budget in study.budgets:
        random, oracle = at_budget(RANDOM, budget), at_budget(ORACLE, budget)
        for arm in (at_budget(label, budget) for label in study.labels):
            point, gain = study.frontier.points[arm], study.gain(arm, random)
            row = {}
            if point.change.truth is not None:
                row["accuracy"] = f"{100 * point.change.truth.accuracy.estimate:.0f} %"
                row["against dense, points"] = show(point.change.truth.change, unit="")
                row["against random, points"] = show(gain, unit="")
            row["length"] = show(point.change.length)
            row[SHARES] = show(study.held(arm), sign=False)
            row["overlap with the oracle"] = span(study.overlap(arm, oracle))
            row["with r = 0"] = span(study.overlap(arm, at_budget(ratio_name(study.ratios[0]), budget)))
            rows[arm] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def gain(study: PromptAwareness, first: str, second: str, budget: float) -> Interval:
    """Accuracy of one label minus another's at a budget, or, without known answers, relevance held."""
    names = at_budget(first, budget), at_budget(second, budget)
    accuracy = study.gain(*names)
    return study.held_gain(*names) if accuracy is None else accuracy


def best_ratio(study: PromptAwareness, budget: float) -> str:
    """The core share that held most accuracy, or relevance; the smaller one of equals."""
    names = [ratio_name(ratio) for ratio in study.ratios]
    return names[int(np.argmax([gain(study, name, RANDOM, budget).estimate for name in names]))]


def mixed(study: PromptAwareness) -> str:
    """The core share nearest to 0.6, that of the public re-implementations."""
    return ratio_name(min(study.ratios, key=lambda ratio: abs(ratio - 0.6)))


def paper_table(study: PromptAwareness, budget: float) -> pd.DataFrame:
    """What is reported elsewhere, beside what was measured here at one budget."""
    mix, only, diverse = mixed(study), ratio_name(max(study.ratios)), ratio_name(min(study.ratios))
    oracle, truth = at_budget(ORACLE, budget), study.frontier.points[at_budget(ORACLE, budget)].change.truth
    kept = [at_budget(label, budget) for label in (diverse, only)]
    unit = "points" if truth is not None else f"points of {SHARES}"

    def change(first: str, second: str) -> str:
        return f"{show(gain(study, first, second, budget), unit='')} {unit}"

    rows = {
        "patches pruned": ("90 %", f"{100 * (1 - budget):g} %"),
        f"relevance and diversity ({mix}) against diversity ({diverse})": (
            "matches or beats DivPrune",
            change(mix, diverse),
        ),
        f"relevance alone ({only}) against random": ("worse, on medical questions", change(only, RANDOM)),
        f"relevance and diversity ({mix}) against relevance alone": ("not reported", change(mix, only)),
        "best r here (chosen on these samples)": ("set by hand for each data set", best_ratio(study, budget)),
        "accuracy of the oracle, of dense": (
            "98 % with half of the patches, 92 % with a quarter",
            "not known" if truth is None else f"{show(truth.ratio, sign=False)} with {100 * budget:g} %",
        ),
        f"overlap of relevant ({only}) and diverse ({diverse}) patches": (
            "not reported",
            f"{span(study.overlap(*kept))}, by chance {study.chance(*kept):.2g}",
        ),
        f"overlap of {mix} with the oracle": (
            "not reported",
            f"{span(study.overlap(at_budget(mix, budget), oracle))}, "
            f"by chance {study.chance(at_budget(mix, budget), oracle):.2g}",
        ),
        **{
            f"overlap of {mix} with {label}": (
                "not reported",
                span(study.overlap(at_budget(mix, budget), at_budget(label, budget))),
            )
            for label in OTHERS
        },
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["papers", "here"])


def verdicts(study: PromptAwareness, budget: float) -> str:
    """What the comparison says at one budget, as Markdown; only a whole interval on one side of zero decides."""
    mix, only, diverse = mixed(study), ratio_name(max(study.ratios)), ratio_name(min(study.ratios))
    known = study.gain(at_budget(mix, budget), at_budget(RANDOM, budget)) is not None
    what = "accuracy" if known else SHARES
    claims = [
        (only, RANDOM, "Relevance alone", "random patches", "gets less", "gets more"),
        (diverse, RANDOM, "Diversity alone", "random patches", "gets less", "gets more"),
        (mix, diverse, f"Both ({mix})", "diversity alone", "get less", "get more, as the paper says"),
        (mix, only, f"Both ({mix})", "relevance alone", "get less", "get more"),
        (ORACLE, mix, "The oracle", f"both ({mix})", "gets less, so it is no upper bound here", "gets more"),
    ]
    lines = []
    for first, second, one, other, below, above in claims:
        found = gain(study, first, second, budget)
        claim = f"{one} against {other} at {100 * budget:g} % ({what}, difference {show(found, unit=' points')})"
        lines.append(sentence(f"{claim}:", side(found, 0.0), below=below, above=above))
    oracle = at_budget(ORACLE, budget)
    for label in (only, diverse, mix):
        arm = at_budget(label, budget)
        found, chance = study.overlap(arm, oracle), study.chance(arm, oracle)
        claim = f"What {label} keeps and what the oracle keeps ({span(found)}; random sets {chance:.2g})"
        ends = {"below": "overlap less than random sets do", "above": "overlap more than random sets do"}
        lines.append(sentence(claim, side(found, chance), **ends))
    return "\n".join(f"- {line}" for line in lines)
