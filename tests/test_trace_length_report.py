"""Sentences about length where nothing varies: no detour to lose, all answers right, no trace changed."""

import numpy as np
import pytest
from made_arms import made_arm, made_arms

from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.studies.frontier.divergence import divergence_figure, first_divergences
from visionpulse_analysis.studies.shared.arms import compare, words_on
from visionpulse_analysis.studies.trace_length import measure, report

FLOOR = "traces hold no detour, so nothing could be shortened"
NAME = "VisionPulse 5 %"


def arm(n_detours, other, right=True, n=40, seeds=1):
    """An arm of `n` samples that spends 9 words on each detour; values are one number or one per sample."""
    n_detours, other = np.broadcast_to(n_detours, n), np.broadcast_to(other, n)
    words = {"objects asked for": 9, "detours": 9 * n_detours, "other words": other}
    columns = {words_on(purpose): spent for purpose, spent in words.items()}
    return made_arm(right, 9 + 9 * n_detours + other, kept=0.05, seeds=seeds, detours=n_detours, **columns)


def verdict(decoding="greedy", name=NAME, **pairs) -> str:
    changes = {how: {name: compare(*pair)} for how, pair in pairs.items()}
    return report.verdicts(changes, decoding)[0]


SOME = np.arange(40) % 3  # 0, 1 or 2 per sample
LONGER, SHORTER = (arm(0, 9), arm(SOME, 9)), (arm(SOME, 9), arm(0, 9))


def test_dense_traces_without_detours_cannot_be_shortened():
    both = verdict(greedy=LONGER, sampled=SHORTER)
    assert f"dense greedy {FLOOR}; see the sampled ones." in both and "does not transfer" not in both
    assert f"{FLOOR}; see notebook 03's sampled decoding." in verdict(greedy=LONGER)
    assert FLOOR in verdict(greedy=(arm(0, 9), arm(0, 9)))
    assert f"{FLOOR}. " in verdict(greedy=LONGER, sampled=LONGER)  # nowhere better to look


def test_where_no_pair_ended_nothing_is_said_of_detours():
    never = arm(0, 9).assign(finished=False)
    said = verdict(greedy=(never, never))
    assert "no pair ended within the limit" in said and FLOOR not in said


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        (SHORTER, NAME),  # dense traces hold detours
        ((arm(0, 9 + SOME), arm(0, 9)), NAME),  # shortened all the same
        (LONGER, "at prefill 5 %"),  # the paper reports longer traces
    ],
)
def test_nothing_is_said_of_detours_that_are_not_missed(pair, name):
    assert FLOOR not in verdict(name=name, greedy=pair)


@pytest.mark.parametrize(
    ("n", "after", "words", "group"),
    [
        (300, True, "Accuracy is kept (100.0 % [98.7, 100.0] of dense: ", "Kept"),
        (96, True, "is open (100.0 % [96.2, 100.0])", "Open"),
        (96, False, "Accuracy falls (-100.0 points [-100.0, -92.3]; 0.0 % [0.0, 3.8] of dense)", "Lost"),
    ],
)
def test_all_right_or_all_wrong_still_has_an_interval(n, after, words, group):
    pair = arm(0, 9, n=n, seeds=3), arm(0, 9, after, n=n, seeds=3)  # seeds add no samples
    assert words in verdict(greedy=pair)
    assert report.where_accuracy_goes({"find": compare(*pair)}).startswith(group)


def test_accuracy_is_kept_only_by_an_interval_that_holds_for_all_comparisons_together():
    """190 of 190 stay right: Wilson says 98.0 % or more of one comparison, and less of eight."""
    n = 190
    arms = made_arms({name: arm(0, 9, n=n) for name in ("dense", *(f"arm {i}" for i in range(4)))})
    changes = measure.compare_all({"a": arms, "b": arms})
    assert all(c.truth.ratio_together.confidence == 1 - 0.05 / 8 for arms in changes.values() for c in arms.values())
    assert changes["a"]["arm 0"].truth.ratio.low >= report.KEPT
    many = {how: {NAME: arms["arm 0"]} for how, arms in changes.items()}
    assert "are kept is open" in report.verdicts(many, "a")[0]
    assert "Accuracy is kept" in verdict(a=(arm(0, 9, n=n), arm(0, 9, n=n)), decoding="a")
    twice = made_arms({name: arm(0, 9, n=2 * n) for name in ("dense", NAME)})
    groups = measure.compare_groups(twice, ["find", "count, 2"] * n, NAME)
    assert report.where_accuracy_goes(groups) == "Open: find; count, 2."


def test_the_same_answers_right_count_only_those_that_could_be_lost():
    right = np.arange(40) < 30
    ratio = compare(arm(0, 9, right), arm(0, 9, right)).truth.ratio
    assert (ratio.value, ratio.n_clusters, ratio.unit) == (1, 30, "sample")
    nothing = compare(arm(0, 9, False), arm(0, 9, False)).truth.ratio
    assert np.isnan(nothing.value) and np.isnan(nothing.low)


def test_no_trace_changed_its_length():
    same = compare(arm(SOME, 9), arm(SOME, 9))
    sentence = report.verdicts({"greedy": {NAME: same}}, "greedy")[0]
    assert sentence.startswith(f"{NAME}: no trace changed its length; the paper reports shorter traces. No")
    assert report.table({"greedy": {NAME: same}})["length"].item() == "no trace changed its length"
    assert report.group_table({"find": same})["length"].item() == "no trace changed its length"
    swapped = compare(arm(0, SOME), arm(0, SOME[::-1]))  # as many longer as shorter
    assert "no trace changed" not in report.verdicts({"greedy": {NAME: swapped}}, "greedy")[0]


def test_how_much_of_the_change_is_spent_on_detours():
    change = compare(arm(SOME, 9), arm(SOME // 2, 9 + SOME))  # 26 detours fewer: -234 words, and 39 others more
    sentence = report.verdicts({"greedy": {NAME: change}}, "greedy")[0]
    assert "Detours per trace go from 1.0 to 0.3 (-0.7 [" in sentence
    assert "of the change of -4.9 [" in sentence and "] tokens, -5.8 [" in sentence  # -4.875 and -5.85
    assert "] are spent on detours, or 120 %. No" in sentence
    row = report.table({"greedy": {NAME: change}}).iloc[0]
    shown = [row[name].split(" ")[0] for name in ("dense detours", "detours", "change of detours")]
    assert shown == ["1.0", "0.3", "-0.7"]
    against = report.verdicts({"greedy": {NAME: compare(arm(0, 30), arm(SOME, 9))}}, "greedy")[0]
    assert "] are spent on detours. " in against  # shorter although detours were added: no share


def test_the_finding_tells_cut_offs_and_decides_by_adjusted_tests():
    dense, pruned = arm(SOME, 9, seeds=2), arm(0, 9, seeds=2)
    never = np.arange(40) < 8
    once = arm(0, 9, ~never, seeds=2).assign(finished=np.tile(~never, 2))
    changes = {NAME: compare(dense, pruned), "at prefill 5 %": compare(dense, once)}
    short, said = report.finding(measure.numbers({"sampled": changes, "greedy": changes}))
    shorter = 100 * SOME.sum() * 9 / (40 * 18 + SOME.sum() * 9)
    assert f"Sampled: length falls (-{shorter:.1f} %" in said and "accuracy not shown (0.0 points [" in said
    assert f"change in length by -{shorter:.1f} %" in short and "(a fall) and in accuracy by +0.0 points [" in short
    assert "at prefill 5 %: length falls (" in said and "cut off 16 of 80 (dense 0)" in said
    assert "(Holm) for all 12 of the notebook" in said


def test_the_figure_says_that_no_trace_differs():
    tokens = [["a", "b"], ["c"]]
    figure = divergence_figure(first_divergences(tokens, tokens, scene_samples(2, cells=4)))
    assert [ax.get_title() for ax in figure.axes] == ["no pruned trace differs from its dense one"]
