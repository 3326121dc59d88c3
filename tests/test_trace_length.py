"""Comparing lengths: slow computations of what the study reports, and identities between its parts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_arms import made_arms

from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.experiments.conditions import Outcome, decode_arms
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.studies.shared.arms import (
    PURPOSES,
    Arms,
    answer_of,
    compare,
    table_hash,
    words_by_purpose,
    words_on,
)
from visionpulse_analysis.studies.trace_length import figures as draw
from visionpulse_analysis.studies.trace_length import measure, report
from visionpulse_analysis.testbed.scenes.questions import reason
from visionpulse_analysis.testbed.scenes.scene import COLOURS, SHAPES
from visionpulse_analysis.testbed.scenes.truth import detours

SAMPLES = scene_samples(12)


def outcomes(seed: int, errors: float) -> list[Outcome]:
    """True traces, some with a wrong answer."""
    found = []
    for number, sample in enumerate(SAMPLES):
        rng = np.random.default_rng([seed, number])
        words = [truth.word for truth in reason(sample.scene, sample.truth, rng)]
        if rng.random() < errors:
            words[-2] = "wrong"
        found.append(Outcome(words, True, 0.05, 0.3))
    return found


def rows(samples, runs):
    """The traces of one arm, a run per seed."""
    return Arms.of(samples, {"arm": runs}, range(len(runs))).table


def by_pair(rows, column):
    """A column as an array [seed, sample]."""
    return rows[column].to_numpy().reshape(-1, len(SAMPLES))


@pytest.fixture(scope="module")
def arms():
    return rows(SAMPLES, [outcomes(s, 0.1) for s in (0, 1)]), rows(SAMPLES, [outcomes(s, 0.6) for s in (2, 3)])


def test_true_traces_are_right_and_their_words_add_up():
    arm = rows(SAMPLES, [outcomes(5, 0.0)])
    assert arm["right"].all()
    np.testing.assert_array_equal(arm[[words_on(purpose) for purpose in PURPOSES]].sum(axis=1), arm["tokens"])
    assert (arm[words_on("objects not there")] == 0).all()


def test_in_true_traces_every_inspection_costs_the_same_words():
    for sample, outcome in zip(SAMPLES, outcomes(5, 0.0), strict=True):
        spent = dict(zip(PURPOSES, words_by_purpose(sample.scene, sample.truth, outcome.tokens), strict=True))
        there, absent = len("see red circle r0 c0 , no .".split()), len("check red circle none .".split())
        kinds_checked = outcome.tokens.count("check")
        missing = kinds_checked - len(sample.truth.targets) if kinds_checked else 0
        assert spent["detours"] == there * detours(sample.scene, sample.truth, outcome.tokens)
        assert spent["objects asked for"] == there * len(sample.truth.targets) + absent * missing


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("look for it .", (0, 0, 0, 4)),
        ("see {target} at r0 c0 , yes . </think> r0 c0", (9, 0, 0, 3)),
        ("see {other} see {target} </think>", (3, 3, 0, 1)),
        ("see {nobody} at r0 c0 </think> r0", (0, 0, 6, 2)),
        ("see see", (0, 0, 0, 2)),
        ("see at r0 .", (0, 0, 0, 4)),
    ],
)
def test_words_by_purpose_of_broken_traces(words, expected):
    sample = SAMPLES[0]
    scene, target = sample.scene, sample.truth.targets[0]
    other = next(o.name for i, o in enumerate(scene.objects) if i != target)
    every = {f"{c} {s}" for c in COLOURS for s in SHAPES}
    nobody = sorted(every - {o.name for o in scene.objects})[0]
    text = words.format(target=scene.objects[target].name, other=other, nobody=nobody)
    assert words_by_purpose(scene, sample.truth, text.split()) == expected


@pytest.mark.parametrize(
    ("tokens", "answer"),
    [("a </think> r0 c1 <|im_end|>", "r0 c1"), ("a </think>", ""), ("a r0 c1", ""), ("</think> 3", "3")],
)
def test_answer_of(tokens, answer):
    assert answer_of(tokens.split()) == answer


def test_compare_agrees_with_counting_pair_by_pair(arms):
    dense, pruned = arms
    change, shuffled = compare(dense, pruned), compare(dense, pruned.sample(frac=1, random_state=1))
    assert as_json(change) == as_json(shuffled)  # pairs are told by sample and seed
    length = [by_pair(arm, "tokens") for arm in arms]
    pairs = [(seed, number) for seed in range(2) for number in range(len(SAMPLES))]
    longer = [int(length[1][p]) - int(length[0][p]) for p in pairs]
    assert change.n_pairs == len(pairs)
    assert change.tokens.value == pytest.approx(sum(longer) / len(pairs))
    assert change.length.value == pytest.approx(sum(longer) / length[0].sum())
    shares = (change.shorter.value, change.equal.value, change.longer.value)
    assert shares == pytest.approx([sum(np.sign(d) == s for d in longer) / len(pairs) for s in (-1, 0, 1)])
    truth, right = change.truth, list(zip(dense["right"], pruned["right"], strict=True))
    assert truth.lost == sum(a and not b for a, b in right)
    assert truth.won == sum(b and not a for a, b in right)
    assert truth.change.value == pytest.approx((truth.won - truth.lost) / len(pairs))
    assert truth.ratio.value == pytest.approx(sum(b for _, b in right) / sum(a for a, _ in right))
    assert truth.n_both_right == sum(a and b for a, b in right)
    both = [p for p, (a, b) in zip(pairs, right, strict=True) if a and b]
    lengths = [sum(of_arm[p] for p in both) for of_arm in length]
    assert truth.length_both_right.value == pytest.approx(lengths[1] / lengths[0] - 1)


def test_the_changes_by_purpose_add_up_to_the_change_of_length(arms):
    change = compare(*arms)
    assert sum(i.value for i in change.truth.words.values()) == pytest.approx(change.tokens.value)
    assert change.truth.detour_change.value == pytest.approx(
        change.truth.detours.value - change.truth.dense_detours.value
    )


def test_intervals_resample_samples_not_pairs(arms):
    change = compare(*arms)
    assert change.length.n_clusters == len(SAMPLES)
    assert change.truth.change.n_values == 2 * len(SAMPLES)


def test_an_arm_against_itself_changes_nothing(arms):
    change = compare(arms[0], arms[0])
    assert (change.tokens.value, change.length.value, change.equal.value) == (0, 0, 1)
    assert (change.truth.lost, change.truth.won, change.truth.p) == (0, 0, 1)


def test_one_task_alone_is_the_comparison_of_its_samples(arms):
    groups = measure.question_groups(SAMPLES)
    by_group = measure.compare_groups(made_arms({"dense": arms[0], "pruned": arms[1]}), groups, "pruned")
    total = sum(c.tokens.value * c.n_pairs for c in by_group.values())
    assert list(by_group)[:2] == ["find", "compare"] and all(g.startswith("count, ") for g in list(by_group)[2:])
    assert total == pytest.approx(compare(*arms).tokens.value * 2 * len(SAMPLES))
    assert list(report.group_table(by_group).index) == list(by_group)


def test_counts_are_grouped_by_how_many_there_are():
    groups = measure.question_groups(SAMPLES)
    for group, sample in zip(groups, SAMPLES, strict=True):
        if sample.truth.task != "count":
            assert group == sample.truth.task
            continue
        low, high = {"0 or 1": (0, 1), "2": (2, 2), "3": (3, 3), "4 or more": (4, 99)}[group.removeprefix("count, ")]
        assert low <= int(sample.truth.answer) <= high
    assert measure.question_groups([replace(SAMPLES[0], truth=None), SAMPLES[1]]) is None


def test_the_sentence_by_question_follows_tests_and_intervals(arms):
    change = compare(*arms)

    def with_ratio(low, high, p=1.0):
        truth = change.truth
        ratio, lost = replace(truth.ratio, low=low, high=high), replace(truth.change, value=-0.4)
        return replace(change, truth=replace(truth, ratio_together=ratio, change=lost, p=p))

    groups = {
        "find": with_ratio(0.99, 1.0),
        "compare": with_ratio(0.9, 0.97, p=0.02),  # alone it would be lost, among nine tests it is not
        "count, 3": with_ratio(0.5, 0.6, p=0.001),
    }
    assert report.where_accuracy_goes(groups) == "Kept (at least 98 % of dense): find. Lost: count, 3. Open: compare."
    assert report.group_table(groups).loc["compare", "p, accuracy"] == "0.02, adjusted 0.16"


def test_pairs_need_the_same_shape(arms):
    one_seed = rows(SAMPLES, [outcomes(0, 0.1)])
    for other in (one_seed, arms[0].iloc[::-1], arms[0].assign(seed=arms[0]["seed"] + 7)):
        with pytest.raises(ValueError, match=r"the 24 traces of 'dense' and the \d+ of 'other' differ"):
            made_arms({"dense": arms[0], "other": other})
    with pytest.raises(ValueError, match="no pair"):
        compare(arms[0], arms[0].assign(seed=arms[0]["seed"] + 7))
    with pytest.raises(ValueError, match="one-to-one"):
        compare(arms[0], pd.concat([arms[0], one_seed]))


def test_without_known_answers_lengths_remain():
    unknown = [Sample(s.id, s.image, s.question) for s in SAMPLES]
    before, after = rows(unknown, [outcomes(0, 0.1)]), rows(unknown, [outcomes(1, 0.1)])
    change = compare(before, after)
    assert "right" not in before and change.truth is None
    changes = {"greedy": {"VisionPulse 5 %": change}}
    assert len(draw.headline(changes).axes) == 1
    assert draw.reasons(changes["greedy"]) is None
    assert "accuracy" not in report.table(changes)
    assert "ccuracy" not in report.verdicts(changes, "greedy")[0]


def test_the_prefill_arms_keep_what_their_twins_kept(vlm, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    small = scene_samples(2, cells=4)
    ways = {"sampled": {"seeds": [0, 1], "sample": Sampling(2.0)}}
    measured = measure.decode_ways(vlm, small, ways, max_new_tokens=6)["sampled"]
    pulse, static = ["VisionPulse 5 %", "VisionPulse 10 %"], ["at prefill 5 %", "at prefill 10 %", "hindsight 5 %"]
    assert measured.names == ["dense", *pulse, *static, "named objects"]
    for name in static:
        twin = "VisionPulse 10 %" if "10" in name else "VisionPulse 5 %"
        kept = [measured.rows(arm)["kept"].mean() * 64 for arm in (twin, name)]
        assert abs(kept[1] - kept[0]) <= 0.51  # half a patch, and the rounding of the budget
    dense = decode_arms(vlm, small, {"dense": None}, seeds=[0, 1], sample=Sampling(2.0), max_new_tokens=6)["dense"]
    assert measured.rows("dense")["text"].tolist() == [o.tokens for run in dense for o in run]


def test_the_hash_knows_every_table_and_column(arms):
    dense, pruned = arms
    changed = [pruned.assign(**{name: pruned[name].iloc[::-1].to_numpy()}) for name in ("tokens", "text", "right")]
    assert len({table_hash(dense, other) for other in (pruned, *changed)} | {table_hash(dense)}) == 5
    assert table_hash(dense, pruned) == table_hash(dense.copy(), pruned.copy())


@pytest.mark.parametrize(
    ("change", "p", "lost", "words", "agrees"),
    [
        (-0.15, 0.001, False, "traces get shorter", True),
        (-0.15, 0.001, True, "traces get shorter", False),  # short and wrong is not the finding
        (0.15, 0.001, False, "traces get longer", False),
        (-0.15, 0.03, False, "no change of length is shown", False),  # alone it would be, among three tests it is not
    ],
)
def test_the_sentence_follows_the_adjusted_test(arms, change, p, lost, words, agrees):
    found = compare(*arms)
    truth = replace(found.truth, p=0.001 if lost else 1.0, change=replace(found.truth.change, value=-0.3))
    interval = replace(found.length, value=change, low=change - 0.05, high=change + 0.05)
    shown = {"greedy": {"VisionPulse 5 %": replace(found, length=interval, p=p, truth=truth)}}
    sentence, *_, family = report.verdicts(shown, "greedy")
    assert words in sentence.split("(")[0]
    assert (", as the paper reports" in sentence) == agrees
    assert "3 of them" in family


@pytest.mark.parametrize(
    ("low", "p", "words"),
    [
        (0.985, 1.0, "Accuracy is kept"),
        (0.8, 0.001, "Accuracy falls"),
        (0.9, 1.0, "is open"),
        (0.9, 0.03, "No change of accuracy is shown"),  # the exact test among its family, not the interval
        (0.985, 0.001, "at least 98 % of dense are kept"),  # a small loss is both
    ],
)
def test_the_verdict_on_accuracy_follows_test_and_interval(arms, low, p, words):
    change = compare(*arms)
    lost = replace(change.truth.change, value=-0.1, low=-0.2, high=-0.01)
    together = replace(change.truth.ratio, low=low, high=0.99)
    truth = replace(change.truth, change=lost, p=p, ratio_together=together)
    shown = {"greedy": {"VisionPulse 5 %": replace(change, truth=truth)}}
    assert words in report.verdicts(shown, "greedy")[0]


def test_cut_off_traces_stand_apart_everywhere(arms):
    dense, pruned = arms
    ended = pruned["sample"] >= 5
    cut = pruned.assign(finished=ended, tokens=dense["tokens"] + 90 * ~ended)  # those that end are as long as dense
    change = compare(dense, cut)
    shown = {"greedy": {"at prefill 5 %": change}}
    sentence = report.verdicts(shown, "greedy")[0]
    assert "no trace that ended changed its length; the paper reports longer traces." in sentence
    assert "Cut off at the limit: 10 of 24 traces, densely 0 (no difference is shown;" in sentence
    assert "Only here 10, longer by at least 90 tokens on average; only densely 0." in sentence
    row = report.table(shown).iloc[0]
    assert (row["cut off"], row["cut off, dense"], row["pairs that ended"]) == ("10 of 24", "0 of 24", "14 of 24")
    assert "cut off (points)" in [ax.get_xlabel() for ax in draw.headline(shown).axes]
    assert measure.numbers(shown)["greedy"]["at prefill 5 %"]["judged"]["cut off"]["size"] == 3
    none = made_arms({"dense": dense, "at prefill 5 %": pruned.assign(finished=False)})
    nothing = {"greedy": none.pruned}
    assert "not known: no pair ended within the limit both times" in report.verdicts(nothing, "greedy")[0]
    assert draw.reasons(nothing["greedy"]) is None and draw.headline(nothing) and len(report.table(nothing)) == 1
    figure = draw.spread(none, ["at prefill 5 %"], None)
    assert [ax.get_title() for ax in figure.axes] == ["no pair ended within the limit"]
