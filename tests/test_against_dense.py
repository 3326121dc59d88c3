"""Sentences say what the adjusted tests say: on data turned round they are turned round, and nothing is fixed text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_arms import LIMIT, first, made_arm, made_arms

from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.studies.frontier import measure as frontier
from visionpulse_analysis.studies.frontier import report as frontier_report
from visionpulse_analysis.studies.pruner_comparison import measure as rivals
from visionpulse_analysis.studies.pruner_comparison import report as rivals_report
from visionpulse_analysis.studies.shared import sentences
from visionpulse_analysis.studies.shared.arms import compare, judge_changes

N = 36
TURNED = {"rises": "falls", "falls": "rises", "not shown": "not shown"}
LENGTHS = np.random.default_rng(5).integers(20, 40, N)
SOLID = made_arm(True, LENGTHS)
BROKEN = made_arm(first(6), LENGTHS + 20 + np.arange(N) % 3, first(24))  # 12 cut off, 30 wrong, longer where it ends


def judge(changes):
    return judge_changes(changes, relative=False)


def decisions(dense, arm):
    judged = judge({"arm": compare(dense, arm)})["arm"]
    return {outcome: verdict.decision for outcome, verdict in judged.items()}


def drawn(seed):
    rng = np.random.default_rng(seed)
    right, length, finished = rng.random(N) < rng.random(), rng.integers(20, 60, N), rng.random(N) < 0.5 + rng.random()
    return made_arm(right, length + rng.integers(-9, 9), finished)


@pytest.mark.parametrize("seed", range(12))
def test_every_decision_is_turned_round_when_dense_and_arm_change_places(seed):
    one, other = drawn(seed), drawn(100 + seed)
    assert decisions(other, one) == {outcome: TURNED[how] for outcome, how in decisions(one, other).items()}


def test_every_decision_is_reached():
    assert decisions(SOLID, BROKEN) == {"accuracy": "falls", "length": "rises", "cut off": "rises"}
    assert decisions(BROKEN, SOLID) == {"accuracy": "rises", "length": "falls", "cut off": "falls"}
    assert set(decisions(SOLID, SOLID).values()) == {"not shown"}


def test_traces_that_never_end_do_not_make_the_others_longer():
    """What the README said of FastV: all pairs +12.7 tokens, those that ended +0.14."""
    arm = made_arm(first(29), LENGTHS - first(9), first(29))  # 7 cut off; of the rest 9 are a token shorter
    change = compare(SOLID, arm)
    assert (arm["tokens"] - SOLID["tokens"]).mean() > 10
    assert change.tokens.value == pytest.approx(-9 / 29)
    assert decisions(SOLID, arm)["length"] == "falls"
    lines = sentences.cut_off_sentences({"FastV": change}, LIMIT)
    assert lines[0] == "Cut off at the limit of 96 tokens, of 36: dense 0, FastV 7."
    least = (LIMIT - SOLID["tokens"][29:]).mean()
    assert "FastV: -0.3 [" in lines[1] and f"(29 pairs), the rest at least {least:+.0f}" in lines[1]
    assert sentences.cut_off_sentences({"FastV": compare(SOLID, SOLID)}, None) == ["Cut off, of 36: dense 0."]
    nothing = sentences.cut_off_sentences({"a": compare(SOLID, made_arm(False, LENGTHS, False))}, LIMIT)
    assert "over the pairs in which both traces ended: a: no such pair, the rest" in nothing[1]


def test_five_lost_and_none_won_is_not_enough():
    """The bootstrap excludes 0 there, McNemar's p is .0625."""
    change = compare(SOLID, made_arm(~first(5), LENGTHS))
    assert change.truth is not None and (change.truth.lost, change.truth.won) == (5, 0)
    assert change.truth.p == pytest.approx(0.0625) and decisions(SOLID, made_arm(~first(5), LENGTHS))["accuracy"] == (
        "not shown"
    )


def test_among_many_arms_more_is_asked_of_each():
    """8 lost and none won: p = .0078 is enough alone, not among 40 arms of 3 tests each."""
    change = compare(SOLID, made_arm(~first(8), LENGTHS))
    alone = judge({"a": change})["a"]["accuracy"]
    among = judge({f"a{i}": change for i in range(40)})["a7"]["accuracy"]
    assert (alone.decision, among.decision) == ("falls", "not shown") and among.size == 120
    assert among.family == "accuracy, length and cut off of 40 arms against dense"
    sentence = sentences.family_sentence({"a": {"accuracy": among}})
    assert "120 tests" in sentence and "adjusted by Holm" in sentence


def test_what_is_not_shown_says_which_loss_is_open():
    same = compare(SOLID, SOLID).truth
    assert same is not None
    assert sentences.still_open(same.change) == f"a loss of up to {-100 * same.change.low:.1f} points is open"
    assert 5 < -100 * same.change.low < 12  # 0 of 36 lost
    assert sentences.still_open(replace(same.change, low=0.01)) == "its interval leaves no loss"
    assert "cannot be said" in sentences.still_open(replace(same.change, low=np.nan))


# Which pruner keeps what it needs


def comparison(**arms):
    """A comparison of methods at 10 %, by label."""
    named = {f"{label.replace('_', ' ')} 10 %": arm for label, arm in arms.items()}
    kept = dict.fromkeys(["dense", *named], 0.1)
    groups = {name.removesuffix(" 10 %"): [name] for name in named}
    return rivals.Comparison(made_arms({"dense": SOLID, **named}), groups, kept)


def test_the_ordering_is_that_of_the_data():
    found = comparison(VisionPulse=SOLID, FastV=BROKEN, DivPrune=SOLID)
    ordering = rivals_report.ordering(found, 0.1)
    assert list(ordering.values()) == [["FastV 10 %"], ["DivPrune 10 %"]]
    broken, solid = ordering
    assert broken == (
        "accuracy falls, as in the paper; traces that end get longer, as in the paper; more traces are cut off at the "
        "limit"
    )
    assert solid == "no change is shown, of accuracy or of length or of how many are cut off"


def test_the_ordering_turned_round():
    """Dense decoding that is bad, and methods of prefill that mend it."""
    found = comparison(VisionPulse=BROKEN, FastV=SOLID)
    turned = replace(found, arms=made_arms({"dense": BROKEN, "FastV 10 %": SOLID}))
    [(ending, names)] = rivals_report.ordering(turned, 0.1).items()
    assert names == ["FastV 10 %"] and ending == (
        "accuracy rises, unlike in the paper; traces that end get shorter, unlike in the paper; fewer traces are cut "
        "off at the limit"
    )


@pytest.mark.parametrize(("pulse", "other", "says"), [
    (SOLID, BROKEN, "more accurate than FastV 10 %"),
    (BROKEN, SOLID, "less accurate than FastV 10 %"),
    (SOLID, SOLID, "not told apart from FastV 10 %"),
])  # fmt: skip
def test_visionpulse_against_the_others_is_that_of_the_data(pulse, other, says):
    lines = rivals_report.verdicts(comparison(VisionPulse=pulse, FastV=other), 0.1)
    assert lines[-1] == f"Of 1 differences in accuracy, judged together: VisionPulse 10 % is {says}."
    shown = next(line for line in lines if line.startswith("VisionPulse 10 %: "))
    assert ("points is open" in shown) == (pulse is SOLID)
    assert ("accuracy falls; " in shown) == (pulse is BROKEN)


def test_the_readme_says_of_the_comparison_what_its_numbers_say():
    good = rivals_report.numbers(comparison(VisionPulse=SOLID, FastV=BROKEN), 0.1)
    short, text = rivals_report.finding(good)
    assert "changes accuracy by 0.0 points [-" in text and "FastV: accuracy falls" in text
    assert "Cut off at the limit of 96 tokens, of 36: FastV 12." in text and "FastV 21.00 [" in text
    bad = rivals_report.finding(rivals_report.numbers(comparison(VisionPulse=BROKEN, FastV=SOLID), 0.1)).long
    assert "changes accuracy by -83.3 points" in bad and "FastV: no change is shown" in bad
    assert "Cut off" not in bad
    assert short.endswith("it is more accurate than 1 of 1 other ways to choose.")
    assert "VisionPulse is more accurate than FastV (" in text and "VisionPulse is less accurate than FastV (" in bad


# The frontier of one pruner


def frontier_of(pulse, other):
    others = ("random", "last step only", "hindsight")
    arms = {f"{name} 5 %": other for name in others} | {"named objects": other, "knob": other}
    return made_arms({"dense": SOLID, "VisionPulse 5 %": pulse, **arms})


def lines_of(pulse, other):
    return frontier_report.verdicts(frontier_of(pulse, other), ["VisionPulse 5 %"], [0.05], {"knob": None})  # type: ignore[dict-item]


@pytest.mark.parametrize("decision", ["rises", "falls", "not shown"])
def test_what_follows_of_a_choice_per_step_is_what_the_data_say(decision):
    pulse, other = {"rises": (SOLID, BROKEN), "falls": (BROKEN, SOLID), "not shown": (SOLID, SOLID)}[decision]
    text = "\n".join(lines_of(pulse, other))
    for selection in ("random", "last step only", "hindsight"):
        assert f"{selection} 5 % (" in text and frontier_report.FOLLOWS[selection][decision] in text
        assert not any(words in text for how, words in frontier_report.FOLLOWS[selection].items() if how != decision)
    compared = sentences.COMPARED
    assert f"VisionPulse 5 % is {compared[decision]} named objects (" in text
    assert f"knob is {compared[TURNED[decision]]} VisionPulse 5 %" in text
    assert ("accuracy falls at VisionPulse 5 %" in text) == (pulse is BROKEN)
    assert ("VisionPulse 5 %: a loss of up to" in text) == (pulse is SOLID)


def test_the_readme_says_of_the_frontier_what_its_numbers_say():
    for pulse, other, says in ((SOLID, BROKEN, "more"), (BROKEN, SOLID, "less")):
        judged = frontier.judged_pairs(frontier_of(pulse, other), [0.05], ["knob"])
        short, text = frontier_report.finding({"against": frontier.numbers(judged)})
        assert f"VisionPulse 5 % is {says} accurate than " in text and "not told apart" not in text
        assert f"random 5 % ({'' if says == 'more' else '-'}83.3 points [" in text
        assert short.count(f"{says} accurate than ") == 2 and "hindsight 5 % (" in short and "random 5 % (" in short
        assert "5 differences in accuracy" in text and "knob" not in text


def test_what_was_measured_on_is_counted(vlm):
    """Of other samples other numbers are told."""
    for n, cells, patches, kept in ((2, 4, "64", "3"), (3, 6, "144", "7")):
        dense = made_arm(True, 30 + np.arange(n), first(n - 1, of=n))
        text = sentences.measured_on(vlm, scene_samples(n, cells=cells), made_arms({"dense": dense}), 0.05)
        assert f"{vlm.n_layers} layers, {n} samples of {patches} visual tokens; 5 % of them are {kept};" in text
        mean = f"{30 + (n - 2) / 2:.2f} (no interval)"
        assert f"dense traces that ended hold {mean} tokens on average, 1 of {n} were cut off." in text
    never = made_arms({"dense": made_arm(False, 30 + np.arange(2), False)})
    none = sentences.measured_on(vlm, scene_samples(2, cells=4), never, 0.05)
    assert "; no dense trace ended, 2 of 2 were cut off." in none
