"""What traces say is told of charts and scenes alike, and samples of charts are questions that their charts carry."""

import numpy as np
import pytest

from visionpulse_analysis.experiments.samples import (
    calibration_samples,
    chart_samples,
    describe_samples,
    generated_samples,
    scene_samples,
)
from visionpulse_analysis.models.loading import load
from visionpulse_analysis.studies.shared.arms import PURPOSES, scored, words_on
from visionpulse_analysis.testbed.charts.questions import TASKS
from visionpulse_analysis.testbed.charts.reasoning import reason
from visionpulse_analysis.testbed.charts.regions import region
from visionpulse_analysis.testbed.truth import detours, kinds_said, parts_said


def test_a_chart_s_words_are_of_the_kinds_and_about_the_parts_of_its_true_trace():
    for sample in chart_samples(9, side=16):
        true = reason(sample.scene, sample.truth, np.random.default_rng(2))
        tokens = [f" {token.word}" for token in true]
        grid = load("charts").prompt(sample.image, sample.question).grid
        assert kinds_said(sample.scene, sample.truth, tokens) == [token.kind for token in true]
        shown = parts_said(sample.scene, sample.truth, tokens, grid)
        assert np.array_equal(shown, [region(sample.scene, token.about) for token in true])
        row = scored(sample, tokens)
        assert row["right"] and row["detours"] == sum(token.word == "no" for token in true)
        assert sum(row[words_on(purpose)] for purpose in PURPOSES) == len(true)
        with pytest.raises(ValueError, match="16 x 16 patches was read as 4"):
            parts_said(sample.scene, sample.truth, tokens, grid.take([0, 1, 2, 3]))
        with pytest.raises(ValueError, match="its own questions"):
            kinds_said(sample.scene, None, tokens)


def test_the_world_of_a_model_is_that_of_its_words():
    charts, scenes = (generated_samples(load(name), 9, seed=2) for name in ("charts", "scenes"))
    assert [sample.truth.task for sample in charts] == list(TASKS)
    assert scenes[0].id == scene_samples(1, seed=2)[0].id
    assert "every part" in describe_samples(charts) and "every object" in describe_samples(scenes)
    assert not {s.id for s in charts} & {s.id for s in calibration_samples(charts, 9, seed=2)}
    assert len({sample.id for sample in charts}) == 9
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        chart_samples(0)


def test_detours_of_a_chart_are_labels_that_nobody_asked_for():
    sample = chart_samples(1, side=16)[0]
    target, other = sample.scene.labels[sample.truth.marks[0]], sample.scene.labels[sample.truth.marks[0] - 1]
    words = f"see {other} first no . see {target} second yes . see zzz .".split()
    assert detours(sample.scene, sample.truth, words) == 1
