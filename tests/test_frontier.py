"""The frontier: its arms are what their names say, and its numbers those of counting."""

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.studies.frontier import figures as draw
from visionpulse_analysis.studies.frontier import measure, report
from visionpulse_analysis.studies.frontier.divergence import compare_tokens
from visionpulse_analysis.studies.shared.arms import Arms, answer_of, measure_arms
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
            **measure.presets(),
            **measure.flatten(measure.at_budgets(BUDGETS)),
            **measure.flatten(measure.at_anchors(vlm.n_layers, 0.05, 4)),
            **measure.knobs(0.05, [1.0]),
        }
        return measure_arms(vlm, samples, arms, max_new_tokens=8)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("selection", measure.SELECTIONS)
def test_a_fixed_budget_keeps_exactly_its_share(measured, selection, budget):
    """Equal retention is what makes the selections comparable."""
    assert measured.rows(f"{selection} {100 * budget:g} %")["kept"].mean() == pytest.approx(int(budget * 64) / 64)


def test_the_points_agree_with_decoding_alone(vlm, samples, measured):
    images, questions = [s.image for s in samples], [s.question for s in samples]
    for name, pruner in {"dense": None, **measure.presets()}.items():
        traces = vpa.decode(vlm, images, questions, layers="none", pruner=pruner, max_new_tokens=8)
        assert measured.rows(name)["text"].tolist() == [trace.tokens for trace in traces]
        numbers, change = measured.numbers()[name], measured.changes[name]
        assert numbers["length"]["estimate"] == pytest.approx(np.mean([len(trace.tokens) for trace in traces]))
        right = [answer_is_right(s.truth, answer_of(t.tokens)) for s, t in zip(samples, traces, strict=True)]
        assert change.truth.accuracy.value == pytest.approx(np.mean(right))


def test_arms_carry_the_settings_they_are_named_for():
    arms = measure.flatten(measure.at_budgets(BUDGETS, anchor=2))
    assert len(arms) == len(BUDGETS) * len(measure.SELECTIONS)
    for name, pruner in arms.items():
        label, budget, _ = name.rsplit(" ", 2)
        assert pruner.name == measure.SELECTIONS[label]
        assert (pruner.budget, pruner.anchor_layer) == (pytest.approx(float(budget) / 100), 2)
    for label, by_layer in measure.at_anchors(8, 0.05, 3).items():
        assert list(by_layer) == [0, 3, 6]
        assert all(
            pruner.anchor_layer == layer and pruner.name == measure.SELECTIONS[label]
            for layer, (_, pruner) in by_layer.items()
        )
    for limit, by_temperature in zip((0.05, 1.0), measure.at_temperatures([0.1, 2.0]).values(), strict=True):
        assert [(p.temperature, p.budget_max) for p in by_temperature.values()] == [(0.1, limit), (2.0, limit)]
    first, second = measure.knobs(0.05, [0.7]).values()
    assert (first.reuse_previous, first.hysteresis) == (True, 0.0)
    assert (second.reuse_previous, second.hysteresis) == (False, 0.7)


def test_an_arm_called_dense_is_refused(vlm, samples):
    with pytest.raises(ValueError, match="decoded anyway"):
        measure_arms(vlm, samples, {"dense": None})


def with_right(measured, **right):
    """The arms with made-up answers for some."""
    table = measured.table.copy()
    for name, answers in right.items():
        table.loc[table["arm"] == name, "right"] = answers
    return Arms(table)


def test_the_advantage_is_ours_minus_theirs(measured):
    made = with_right(measured, **{"VisionPulse 5 %": [True, True, False], "random 5 %": [False, True, False]})
    assert made.advantage("VisionPulse 5 %", "random 5 %").value == pytest.approx(1 / 3)
    judged = measure.judged_pairs(made, [0.05], ["hysteresis 1"])
    assert judged["VisionPulse 5 %", "random 5 %"].estimate.value == pytest.approx(1 / 3)
    others = {over for arm, over in judged if arm == "VisionPulse 5 %"}
    assert others == {f"{name} 5 %" for name in measure.SELECTIONS} - {"VisionPulse 5 %"}
    assert measure.numbers(judged)["hysteresis 1"]["VisionPulse 5 %"]["size"] == len(judged) == len(others) + 1


def test_without_known_answers_lengths_remain(vlm, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    unknown = [Sample(s.id, s.image, s.question) for s in samples]
    groups = measure.at_budgets([0.05])
    found = measure_arms(vlm, unknown, measure.flatten(groups), max_new_tokens=4)
    assert not found.known
    assert found.advantage("VisionPulse 5 %", "random 5 %") is None
    panels = [ax.get_ylabel() for ax in draw.frontier_page(found, groups).axes]
    assert panels[-1] == "traces cut off" and "accuracy" not in panels
    lines = report.verdicts(found, groups["VisionPulse"], [0.05], {})
    assert lines[0].startswith("Length and cut off of 1 arms against dense: 2 tests.")
    assert "accuracy is left out" in lines[-1] and "accurate" not in "".join(lines)


def test_the_steps_shown_start_with_the_first_choice_and_differ(vlm, samples):
    trace = vpa.decode(
        vlm, samples[0].image, samples[0].question, layers="none", pruner=vpa.VisionPulse(budget=0.1), max_new_tokens=12
    )
    steps = draw.steps_to_show(trace, 3)
    assert steps == sorted(set(steps)) and steps[0] == 1 and len(steps) == 3
    kept = [set(np.flatnonzero(row)) for row in trace.kept.values]
    second = min(range(2, len(kept)), key=lambda step: (len(kept[1] & kept[step]) / len(kept[1] | kept[step]), step))
    assert second in steps
    page = draw.step_page(trace, compare_tokens(trace.tokens, trace.tokens), steps)
    assert [ax.get_title().split("\n")[0] for ax in page.axes[:3]] == [f"step {step}" for step in steps]


def test_a_dense_trace_is_no_example(vlm, samples):
    dense = vpa.decode(vlm, samples[0].image, samples[0].question, layers="none", max_new_tokens=2)
    with pytest.raises(ValueError, match="nothing was dropped"):
        draw.steps_to_show(dense)
