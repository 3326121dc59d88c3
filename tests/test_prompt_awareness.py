"""Relevance against diversity: who keeps what is recounted slowly, and the sentences follow whole intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_arms import first, made_arm, made_arms

import visionpulse_analysis as vpa
from visionpulse_analysis._util.fingerprints import Remembered
from visionpulse_analysis.decoding.patch_gradients import relevance
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.studies.prompt_awareness import figures as draw
from visionpulse_analysis.studies.prompt_awareness import measure as study
from visionpulse_analysis.studies.prompt_awareness import report

RATIOS, BUDGETS = [0.0, 0.6, 1.0], [0.1, 0.25]
OPTIONS = {"max_new_tokens": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def samples():
    return scene_samples(3, cells=4)


@pytest.fixture(scope="module")
def found(vlm, samples, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONPULSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield study.prompt_awareness(vlm, samples, RATIOS, BUDGETS, **OPTIONS)


def test_what_is_kept_is_what_decoding_shows_from_its_first_step_on(vlm, samples, found):
    arms = study.prompt_arms(RATIOS, BUDGETS)
    for name in ("r = 0.6, 10 %", "r = 1, 25 %", "random, 25 %", "oracle, 10 %"):
        for number, sample in enumerate(samples):
            trace = vpa.decode(vlm, sample.image, sample.question, pruner=arms[name], seed=number, max_new_tokens=4)
            assert np.array_equal(found.kept[name][number], trace.kept.values[0]), name


def test_diversity_alone_is_divprune_and_fastv_is_what_layer_two_sees(vlm, samples, found):
    kinds = {
        "r = 0, 10 %": vpa.make_pruner("divprune", budget=0.1),
        "FastV, 10 %": vpa.make_pruner("fastv", budget=0.1),
    }
    for name, pruner in kinds.items():
        traces = vpa.decode(
            vlm, [s.image for s in samples], [s.question for s in samples], pruner=pruner, max_new_tokens=2
        )
        assert all(
            np.array_equal(kept, trace.kept.values[0]) for kept, trace in zip(found.kept[name], traces, strict=True)
        )


def test_relevance_is_that_of_each_dense_answer(vlm, samples, found):
    for sample, values in zip(samples, found.relevance, strict=True):
        dense = vpa.decode(vlm, sample.image, sample.question, max_new_tokens=4)
        expected = relevance(vlm, vlm.prompt(sample.image, sample.question), torch.tensor(dense.token_ids))
        assert np.allclose(values, expected.numpy(), rtol=1e-4, atol=1e-9)


def test_overlap_and_share_held_are_counted(found):
    first, second = "r = 0, 25 %", "oracle, 25 %"
    sets = [[set(np.flatnonzero(row)) for row in found.kept[name]] for name in (first, second)]
    pairs = list(zip(*sets, strict=True))
    assert found.overlap(first, second).value == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
    shares = [r[list(kept)].sum() / r.sum() for r, kept in zip(found.relevance, sets[0], strict=True)]
    assert found.held(first).value == pytest.approx(np.mean(shares), rel=1e-5)
    other = [r[list(kept)].sum() / r.sum() for r, kept in zip(found.relevance, sets[1], strict=True)]
    assert found.held_gain(first, second).value == pytest.approx(np.mean(shares) - np.mean(other), rel=1e-4)
    generator = np.random.default_rng(0)
    drawn = [[set(generator.choice(64, 16, replace=False)) for _ in range(2)] for _ in range(4000)]
    by_chance = np.mean([len(a & b) / len(a | b) for a, b in drawn])
    assert found.chance(first, second) == pytest.approx(by_chance, abs=4 * 0.06 / 4000**0.5)
    assert found.held(second).value >= max(found.held(f"{label}, 25 %").value for label in found.labels) - 1e-9


def test_the_oracle_is_asked_once(vlm, samples, tmp_path, monkeypatch):
    from visionpulse_analysis.decoding import batch
    from visionpulse_analysis.experiments import conditions as arms

    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    asked = Remembered()  # a list that grows with every call would be a change of what runs: nothing would be kept

    def counted(*given):
        asked[len(asked)] = True
        return relevance(*given)

    monkeypatch.setattr(batch, "relevance", counted)
    oracles = {b: vpa.make_pruner("oracle", budget=b) for b in (0.1, 0.2)}
    arms.decode_arms(vlm, samples, oracles, max_new_tokens=3, batch_size=2)
    arms.first_choices(vlm, samples, oracles, max_new_tokens=3, batch_size=2)
    assert len(asked) == len(samples)
    arms.first_choices(vlm, samples, oracles, tokens=2, max_new_tokens=3, batch_size=2)
    assert len(asked) == 2 * len(samples)


MIXED, DIVERSE = made_arm(first(30), 30 + np.arange(36) % 3, kept=0.1), made_arm(first(6), 30, first(29), kept=0.1)


def made(**arms):
    """A study of 36 samples in which these arms answer as given, and all arms keep what their number says."""
    names = {label: arms.get(label, DIVERSE) for label in ("r0", "r06", "r1", "random", "oracle")}
    labels = {"r0": "r = 0", "r06": "r = 0.6", "r1": "r = 1"}
    called = {f"{labels.get(label, label)}, 10 %": arm for label, arm in names.items()}
    kept = {name: [np.arange(64) // 6 == place] * 36 for place, name in enumerate(called)}
    arms = made_arms({"dense": MIXED, **called})
    return study.PromptAwareness([0.0, 0.6, 1.0], [0.1], arms, kept, [np.ones(64, np.float32)] * 36)


@pytest.mark.parametrize(
    ("mixed", "diverse", "says"),
    [
        (MIXED, DIVERSE, "which is more, as the paper says."),
        (DIVERSE, MIXED, "which is less, unlike in the paper."),
        (MIXED, MIXED, "a difference is not shown."),
    ],
)
def test_the_sentences_follow_the_adjusted_tests(mixed, diverse, says):
    """Turned round, the data turn the sentences round; the mix is better or worse than the oracle, too."""
    found = made(r06=mixed, r0=diverse, oracle=diverse)
    lines = report.verdicts(found, 0.1).splitlines()
    assert lines[0].startswith("- 8 differences at 10 % kept. Exact tests")
    [line] = [line for line in lines if line.startswith("- Both (r = 0.6) against diversity alone (r = 0): accuracy")]
    assert line.endswith(says)
    [line] = [line for line in lines if line.startswith("- The oracle against both")]
    assert ("no upper bound" in line) == (mixed is MIXED and diverse is DIVERSE)
    assert ("which is more." in line) == (mixed is DIVERSE)
    [line] = [line for line in lines if line.startswith("- Cut off at the limit of 96 tokens, of 36: dense 0, ")]
    assert "r = 1, 10 % 7" in line and ("r = 0.6, 10 % 7" in line) == (mixed is DIVERSE)
    best = report.best_ratios(found, 0.1)
    assert best.startswith("r = 0;" if says.startswith("a diff") else "r = 0.6" if mixed is MIXED else "r = 0")
    assert ("not told apart from it: r = 0.6" in best) == (mixed is diverse)


def test_what_is_kept_overlaps_as_the_sets_do():
    """Sets apart overlap less than chance, equal ones more, and where all agree by chance nothing is said."""
    found = made(r06=MIXED)
    apart = [line for line in report.verdicts(found, 0.1).splitlines() if "and what the oracle keeps" in line]
    assert len(apart) == 3 and all(line.endswith("overlap less than random sets do.") for line in apart)
    kept = {name: [np.arange(64) < 6] * 36 for name in found.kept}
    same = [line for line in report.verdicts(replace(found, kept=kept), 0.1).splitlines() if "the oracle keeps" in line]
    assert all(line.endswith("overlap more than random sets do.") for line in same)


def test_the_readme_says_what_the_numbers_say():
    for mixed, diverse, says in ((MIXED, DIVERSE, "rises"), (DIVERSE, MIXED, "falls")):
        short, text = report.finding(report.numbers(made(r06=mixed, r0=diverse), 0.1))
        assert f"r = 0.6 minus r = 0 {says}" in text and "8 differences at 10 % kept" in text
        assert text.count("below chance") == 3 and "above chance" not in text
        told = f"r = {'0' if mixed is MIXED else '0.6'} 16.7 % [7.9, 31.9]"
        assert f"{told} (7 cut off)" in text and told in short


def test_tables_have_every_arm_and_the_documented_mix(found):
    table = report.table(found)
    assert list(table.index) == [f"{label}, {b} %" for b in (10, 25) for label in found.labels]
    assert table.loc["oracle, 10 %", "overlap with the oracle"] == "1 (no interval)"
    paper = report.paper_table(found, 0.1)
    assert paper.loc["patches pruned", "here"] == "90 %"
    assert any("r = 0.6" in row for row in paper.index) and set(paper.columns) == {"papers", "here"}
    assert set(found.numbers()) == {"dense", *table.index}


def test_own_images_are_compared_by_the_relevance_they_hold(vlm, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    own = [Sample(f"own-{n}", s.image, "what is this ?") for n, s in enumerate(samples[:2])]
    mine = study.prompt_awareness(vlm, own, [0.0, 1.0], [0.25], **OPTIONS)
    held = mine.held_gain("r = 1, 25 %", "random, 25 %")
    assert report.gain(mine, "r = 1", "random", 0.25).value == held.value
    assert "share of the relevance held" in report.verdicts(mine, 0.25)
    assert len(draw.headline(mine).axes) == 2


def test_the_figures_draw_these_numbers(vlm, samples, found):
    accuracy, held, overlap = draw.headline(found).axes[3:6]
    for ax, value in ((accuracy, lambda arm: found.arms.changes[arm].truth.accuracy), (held, found.held)):
        [curve] = [line for line in ax.lines if line.get_label() == "ZSPAPrune"]
        assert np.allclose(curve.get_ydata(), [value(f"r = {r:g}, 25 %").value for r in RATIOS])
    flat = {line.get_label(): np.asarray(line.get_ydata())[0] for line in overlap.lines}
    assert flat["static random"] == pytest.approx(found.overlap("random, 25 %", "oracle, 25 %").value)
    page = draw.kept_page(vlm, samples[0], found, 0, 0.25)
    assert [ax.get_title() for ax in page.axes][1:] == [
        "r = 0",
        "r = 0.6",
        "r = 1",
        "static random",
        "oracle",
        "FastV",
        "CDPruner",
    ]


def test_nothing_to_compare_raises():
    with pytest.raises(ValueError, match="expected ratios and budgets"):
        study.prompt_arms([], [0.1])
