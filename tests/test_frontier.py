"""The frontier: its arms are what their names say, and its numbers those of counting."""

from dataclasses import replace

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.studies.frontier import (
    figures as frontier_report,
)
from visionpulse_analysis.studies.frontier import (
    measure as frontier,
)
from visionpulse_analysis.studies.frontier import (
    report as frontier_verdicts,
)
from visionpulse_analysis.studies.shared.divergence import compare_tokens
from visionpulse_analysis.studies.shared.per_trace import answer_of
from visionpulse_analysis.testbed.scenes.truth import answer_is_right

BUDGETS = [0.05, 0.25]


@pytest.fixture(scope="module")
def samples():
    return scene_samples(3, cells=4)


@pytest.fixture(scope="module")
def measured(vlm, samples, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONPULSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        arms = {
            **frontier.presets(),
            **frontier.flatten(frontier.at_budgets(BUDGETS)),
            **frontier.flatten(frontier.at_anchors(vlm.n_layers, 0.05, 4)),
            **frontier.knobs(0.05, [1.0]),
        }
        return frontier.measure_frontier(vlm, samples, arms, max_new_tokens=8)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("selection", frontier.SELECTIONS)
def test_a_fixed_budget_keeps_exactly_its_share(measured, selection, budget):
    """Equal retention is what makes the selections comparable."""
    assert measured.points[f"{selection} {100 * budget:g} %"].retention == pytest.approx(int(budget * 64) / 64)


def test_the_points_agree_with_decoding_alone(vlm, samples, measured):
    images, questions = [s.image for s in samples], [s.question for s in samples]
    for name, pruner in {"dense": None, **frontier.presets()}.items():
        traces = vpa.decode(vlm, images, questions, layers="none", pruner=pruner, max_new_tokens=8)
        assert measured.tokens[name] == [trace.tokens for trace in traces]
        point = measured.points[name]
        assert point.length.value == pytest.approx(np.mean([len(trace.tokens) for trace in traces]))
        right = [answer_is_right(s.truth, answer_of(t.tokens)) for s, t in zip(samples, traces, strict=True)]
        assert point.accuracy.value == pytest.approx(np.mean(right))


def test_arms_carry_the_settings_they_are_named_for():
    arms = frontier.flatten(frontier.at_budgets(BUDGETS, anchor=2))
    assert len(arms) == len(BUDGETS) * len(frontier.SELECTIONS)
    for name, pruner in arms.items():
        label, budget, _ = name.rsplit(" ", 2)
        assert pruner.name == frontier.SELECTIONS[label]
        assert (pruner.budget, pruner.anchor_layer) == (pytest.approx(float(budget) / 100), 2)
    for label, by_layer in frontier.at_anchors(8, 0.05, 3).items():
        assert list(by_layer) == [0, 3, 6]
        assert all(
            pruner.anchor_layer == layer and pruner.name == frontier.SELECTIONS[label]
            for layer, (_, pruner) in by_layer.items()
        )
    for limit, by_temperature in zip((0.05, 1.0), frontier.at_temperatures([0.1, 2.0]).values(), strict=True):
        assert [(p.temperature, p.budget_max) for p in by_temperature.values()] == [(0.1, limit), (2.0, limit)]
    first, second = frontier.knobs(0.05, [0.7]).values()
    assert (first.reuse_previous, first.hysteresis) == (True, 0.0)
    assert (second.reuse_previous, second.hysteresis) == (False, 0.7)


def test_an_arm_called_dense_is_refused(vlm, samples):
    with pytest.raises(ValueError, match="decoded anyway"):
        frontier.measure_frontier(vlm, samples, {"dense": None})


def with_right(measured, **right):
    """The frontier with made-up answers for some arms."""
    arms = {
        name: replace(arm, truth=replace(arm.truth, right=np.array([right[name]]))) if name in right else arm
        for name, arm in measured.arms.items()
    }
    return replace(measured, arms=arms)


def test_the_advantage_is_ours_minus_theirs(measured):
    made = with_right(measured, **{"VisionPulse 5 %": [True, True, False], "random 5 %": [False, True, False]})
    assert frontier.advantage(made, "VisionPulse 5 %", "random 5 %").value == pytest.approx(1 / 3)
    judged = frontier_verdicts.judged_pairs(made, [0.05], ["hysteresis 1"])
    assert judged["VisionPulse 5 %", "random 5 %"].estimate.value == pytest.approx(1 / 3)
    others = {over for arm, over in judged if arm == "VisionPulse 5 %"}
    assert others == {f"{name} 5 %" for name in frontier.SELECTIONS} - {"VisionPulse 5 %"}
    assert (
        frontier_verdicts.numbers(judged)["hysteresis 1"]["VisionPulse 5 %"]["size"] == len(judged) == len(others) + 1
    )


def test_without_known_answers_lengths_remain(vlm, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    unknown = [Sample(s.id, s.image, s.question) for s in samples]
    groups = frontier.at_budgets([0.05])
    found = frontier.measure_frontier(vlm, unknown, frontier.flatten(groups), max_new_tokens=4)
    assert found.dense.accuracy is None
    assert frontier.advantage(found, "VisionPulse 5 %", "random 5 %") is None
    panels = [ax.get_ylabel() for ax in frontier_report.frontier_page(found, groups).axes]
    assert panels[-1] == "traces cut off" and "accuracy" not in panels
    lines = frontier_verdicts.verdicts(found, groups["VisionPulse"], [0.05], {})
    assert lines[0].startswith("Length and cut off of 1 arms against dense: 2 tests.")
    assert "accuracy is left out" in lines[-1] and "accurate" not in "".join(lines)


def test_the_steps_shown_start_with_the_first_choice_and_differ(vlm, samples):
    trace = vpa.decode(
        vlm, samples[0].image, samples[0].question, layers="none", pruner=vpa.VisionPulse(budget=0.1), max_new_tokens=12
    )
    steps = frontier_report.steps_to_show(trace, 3)
    assert steps == sorted(set(steps)) and steps[0] == 1 and len(steps) == 3
    kept = [set(np.flatnonzero(row)) for row in trace.kept.values]
    second = min(range(2, len(kept)), key=lambda step: (len(kept[1] & kept[step]) / len(kept[1] | kept[step]), step))
    assert second in steps
    page = frontier_report.step_page(trace, compare_tokens(trace.tokens, trace.tokens), steps)
    assert [ax.get_title().split("\n")[0] for ax in page.axes[:3]] == [f"step {step}" for step in steps]


def test_a_dense_trace_is_no_example(vlm, samples):
    dense = vpa.decode(vlm, samples[0].image, samples[0].question, layers="none", max_new_tokens=2)
    with pytest.raises(ValueError, match="nothing was dropped"):
        frontier_report.steps_to_show(dense)
