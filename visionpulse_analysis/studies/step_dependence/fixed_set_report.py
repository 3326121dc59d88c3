"""What follows from fixed sets beside sets by step, in a sentence, a table and a panel; every number computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.metrics.estimate import UNKNOWN, Estimate
from visionpulse_analysis.metrics.statistics import Claim, judge
from visionpulse_analysis.studies.shared.arms import Arms
from visionpulse_analysis.studies.step_dependence.fixed_sets import (
    FIXED,
    HINDSIGHT,
    NAMED,
    ONCE,
    OWN,
    PREFILL,
    FixedSets,
)

WORDS = {
    OWN: "the step's own set",
    PREFILL: "prefill's",
    HINDSIGHT: "one set chosen in hindsight (mean attention of the trace)",
    NAMED: "all patches of the objects that the trace names",
    ONCE: "one random set",
}


SHORT = {"unharmed": "unharmed", "same_word": "same word", "named": "object kept"}
SAID = {
    "unharmed": "say what they say when they see only a set, within {level:g} nats",
    "same_word": "keep their most probable word",
}


def about_sets(numbers: dict[str, Any]) -> str:
    """Say whether one set would do for a whole trace, from the numbers of a :class:`FixedSets`.

    Once each for what the steps say, for their words and for the objects that they name.
    """
    sets, worse = numbers["sets"], numbers["worse"]
    size = f"{100 * sets[OWN]['share']:.1f} % of the patches"
    lines = []
    for measure, words in SAID.items():
        if measure in worse:
            lines.append(
                f"Of the {numbers['n_needing']:,} steps that need the image, so many {words.format(**numbers)} "
                f"({size}): {_told(sets, measure)}. {_follows(worse[measure])}"
            )
    if "named" in worse:
        lines.append(
            f"All patches of the object that a step names are in the set ({size}) at so many steps: "
            f"{_told(sets, 'named', without=NAMED)}. {_follows(worse['named'], without=NAMED)}"
        )
    if not any(measure in worse for measure in SAID):
        lines.append("What steps say with only a fixed set is not tested: that takes the model, and steps in need.")
    return " ".join(lines)


def conclusions(numbers: dict[str, Any]) -> str:
    """Only what follows, by each measure, from the numbers of a :class:`FixedSets`."""
    by = {
        "unharmed": f"By what the steps that need the image say, within {numbers['level']:g} nats",
        "same_word": "By their most probable words",
        "named": "By the named objects' patches",
    }
    worse = numbers["worse"]
    lines = [
        f"{words}: {_follows(worse[measure], without=NAMED if measure == 'named' else '')}"
        for measure, words in by.items()
        if measure in worse
    ]
    return " ".join(lines) or "Whether one fixed set would do is not tested."


def _told(sets: dict[str, Any], measure: str, without: str = "") -> str:
    size = f" ({100 * sets[NAMED]['share']:.1f} %)" if NAMED in sets else ""
    names = [name for name in WORDS if name in sets and name != without]
    return ", ".join(
        f"{WORDS[name]}{size * (name == NAMED)} {Estimate.from_json(sets[name][measure]):.1%}" for name in names
    )


def _follows(worse: Mapping[str, dict[str, Any]], without: str = "") -> str:
    told = {name: verdict for name, verdict in worse.items() if name != without}
    changes = {name: f"{Estimate.from_json(verdict['effect']):.1p}" for name, verdict in told.items()}
    return conclusion({name: verdict["decision"] for name, verdict in told.items()}, changes)


def conclusion(decisions: Mapping[str, str], changes: Mapping[str, str]) -> str:
    """What follows for step dependence where fixed sets do worse than sets by step, or are not shown to.

    Parameters
    ----------
    decisions : name of each fixed set, `PREFILL` among them -> decision of its `Claim` against sets by step
    changes : the same names -> the change as text
    """
    lose = [name for name, decision in decisions.items() if decision == "falls"]
    hold = [name for name in decisions if name not in lose]
    held = " and ".join(f"{name} ({changes[name]})" for name in hold)
    lost = " and ".join(f"{name} ({changes[name]})" for name in lose)
    is_ = _verb(hold, "is", "are")
    if not hold:
        return f"Here what matters depends on the step, as far as fixed sets were tried: each does worse, {lost}."
    if not lose:
        return f"That what matters depends on the step is not shown by this: no fixed set does worse, {held}."
    if PREFILL not in lose:
        return (
            f"That what matters depends on the step is not shown by this: {held} {is_} not shown to do worse, though "
            f"{lost} {_verb(lose, 'does', 'do')}."
        )
    others = [name for name in lose if name != PREFILL]
    also = (
        f"; {' and '.join(f'{name} ({changes[name]})' for name in others)} {_verb(others, 'does', 'do')} worse, too"
        if others
        else ""
    )
    return (
        f"Prefill is the wrong moment ({changes[PREFILL]}), but that no fixed set would do is not shown by this: "
        f"{held} {is_} not shown to do worse than choosing at each step{also}."
    )


def _verb(names: Sequence[str], one: str, several: str) -> str:
    return one if len(names) == 1 else several


def sets_table(study: FixedSets) -> pd.DataFrame:
    """One row per way of choosing, those by step and those for the whole trace."""
    rows = {}
    for name, one in study.sets.items():
        rows[name] = {
            "set": "one" if name in (*FIXED, ONCE) else "by step",
            "kept": f"{100 * one.share:.1f} %",
            "image mass on it": f"{one.mass:.1%}",
            "steps in need, unharmed": _percent_or_unknown(one.unharmed),
            "steps in need, same word": _percent_or_unknown(one.same_word),
            "traces without a harmed step": _percent_or_unknown(one.whole),
            "object named, all of it kept": _percent_or_unknown(one.named),
            **{
                f"{words}, against own": _against(study.worse[measure].get(name))
                for measure, words in SHORT.items()
                if measure in study.worse
            },
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _percent_or_unknown(estimate: Estimate | None) -> str:
    return UNKNOWN if estimate is None else f"{estimate:.1%}"


def _against(verdict: Claim | None) -> str:
    return "" if verdict is None else f"{verdict.estimate:+.1p}, p {verdict.adjusted:.2g}"


def draw_same_word(ax: Axes, study: FixedSets) -> Axes:
    """Draw how many of the steps that need the image keep their word when they see only a set."""
    known = {name: one.same_word for name, one in study.sets.items() if one.same_word is not None}
    figures.draw_estimates(ax, _percent(known), xlabel="steps in need, same word (%)")
    ax.set_xlim(0, 104)
    return ax


def sets_page(study: FixedSets) -> Figure:
    """Draw for every set the image mass on it, and where known the steps unharmed and the objects kept whole."""
    panels = {
        "image mass\non the set (%)": {name: one.mass for name, one in study.sets.items()},
        "steps in need,\nunharmed (%)": {name: one.unharmed for name, one in study.sets.items()},
        "steps in need,\nsame word (%)": {name: one.same_word for name, one in study.sets.items()},
        "object named\nkept whole (%)": {name: one.named for name, one in study.sets.items()},
    }
    drawn = {label: values for label, values in panels.items() if all(one is not None for one in values.values())}
    fig, axes = figures.new_figure(figures.DOUBLE, 0.22 * len(study.sets) + 0.75, 1, len(drawn), sharey=True)
    for ax, (label, values) in zip(np.atleast_1d(axes), drawn.items(), strict=True):
        figures.draw_estimates(
            ax, _percent({name: one for name, one in values.items() if one is not None}), xlabel=label
        )
        ax.set_xlim(0, 104)
    return figures.finish(fig, axes)


def _percent(named: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: 100 * one for name, one in named.items()}


def about_arms(arms: Arms, step: str, fixed: Mapping[str, str]) -> str:
    """Say by accuracy whether a fixed set would do, from arms of the same samples and seeds.

    Parameters
    ----------
    step : the arm that chooses at each step
    fixed : what the fixed sets are (`PREFILL`, `HINDSIGHT`, `NAMED`) -> their arms; those that are not there, or whose
        answers are not known, are left out.
    """
    changes = {label: arms.against(name, step).truth for label, name in fixed.items() if name in arms.names}
    tests = {label: (truth.change, truth.p) for label, truth in changes.items() if truth is not None}
    if not tests:
        return "Whether one fixed set would do is not tested: that takes known answers."
    judged = judge(tests, family=f"accuracy of {len(tests)} fixed sets against {step}")
    told = {label: f"{verdict.estimate:.1p}" for label, verdict in judged.items()}
    follows = conclusion({label: verdict.decision for label, verdict in judged.items()}, told)
    return f"One set for the whole trace against {step}, by accuracy: {follows}"
