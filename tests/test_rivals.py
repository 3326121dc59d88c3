"""All pruners at the same retention: they keep that share, and numbers and sentences are those of counting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.pruners.diversity import BeforeModel
from visionpulse_analysis.statistics import Interval
from visionpulse_analysis.studies import rivals, rivals_figures, rivals_report
from visionpulse_analysis.studies.samples import scene_samples

OPTIONS = {"max_new_tokens": 5, "batch_size": 3}


@pytest.fixture(scope="module")
def samples():
    return scene_samples(3, cells=4)


@pytest.fixture(scope="module")
def compared(vlm, samples, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONPULSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield rivals.compare_rivals(vlm, samples, rivals.rival_arms([0.25], vlm.n_layers), **OPTIONS)


def test_no_pruner_of_the_suite_is_left_out():
    named = {part for rival in rivals.RIVALS.values() for part in rival.name.split(" | ")}
    ours = {n for n, kind in vpa.list_pruners().items() if kind.__module__.startswith("visionpulse_analysis")}
    assert named == ours - {"keep_all"}  # which is dense
    assert all(rival.matched or rival.own is not None for rival in rivals.RIVALS.values())


@pytest.mark.parametrize("label", [label for label, rival in rivals.RIVALS.items() if rival.matched])
def test_a_matched_pruner_keeps_its_budget(compared, label):
    point = compared.frontier.points[f"{label} 25 %"]
    assert abs(point.retention - 0.25) <= 1 / 64 + 1e-9  # a patch, where a method rounds up


def test_a_pruner_defined_later_takes_part(vlm):
    before = set(rivals.all_rivals())

    @dataclass(frozen=True)
    class DefinedLater(BeforeModel):
        name = "defined_later"
        budget: float = 0.1

    assert set(rivals.all_rivals()) - before == {"defined_later"}
    arms = rivals.rival_arms([0.5], vlm.n_layers)
    assert arms["defined_later"] == {"defined_later 50 %": DefinedLater(0.5)}


def test_what_no_parameter_sets_is_not_matched(vlm):
    with pytest.raises(ValueError, match="no parameter of vtw"):
        rivals.matched_pruner(rivals.RIVALS["VTW"], 0.1, vlm.n_layers)
    arms = rivals.rival_arms([0.05, 0.1], vlm.n_layers)
    assert list(arms["VTW"]) == ["VTW, own setting"]
    assert list(arms["FastV"]) == ["FastV 5 %", "FastV 10 %"]


def test_costs_are_those_of_each_trace_alone(vlm, samples, compared):
    arms = rivals.rival_arms([0.25], vlm.n_layers)
    chosen = ("FastV", "ShortV", "MVW", "LOOK-M", "VisionPulse", "VisiPruner")
    pruners = {"dense": None, **{name: p for label in chosen for name, p in arms[label].items()}}
    images, questions = [s.image for s in samples], [s.question for s in samples]
    for name, pruner in pruners.items():
        traces = vpa.decode(vlm, images, questions, layers="none", pruner=pruner, max_new_tokens=5)
        costs = [vpa.costs_of(trace) for trace in traces]
        assert np.allclose(compared.costs[name]["flops"], [c.flops.sum() for c in costs], rtol=1e-12), name
        assert np.allclose(compared.costs[name]["kv_bytes_read"], [c.kv_bytes_read.sum() for c in costs]), name
        assert np.allclose(compared.costs[name]["peak_kv_bytes"], [c.peak_kv_bytes for c in costs]), name
    change = compared.cost_change("FastV 25 %", "flops").estimate
    dense, pruned = (compared.costs[name]["flops"].sum() for name in ("dense", "FastV 25 %"))
    assert change == pytest.approx(pruned / dense - 1)


def changed(compared, name, accuracy, length):
    """The comparison with made-up intervals for one arm."""
    point = compared.frontier.points[name]
    truth = replace(point.change.truth, change=interval(point.change.length, *accuracy))
    change = replace(point.change, truth=truth, length=interval(point.change.length, *length))
    points = {**compared.frontier.points, name: replace(point, change=change)}
    return replace(compared, frontier=replace(compared.frontier, points=points))


def interval(like: Interval, low: float, high: float) -> Interval:
    return replace(like, estimate=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("accuracy", "length", "says"),
    [
        ((-0.5, -0.1), (0.1, 0.3), "appears in full"),
        ((-0.5, 0.01), (0.1, 0.3), "traces get longer, as in the paper; a loss"),
        ((-0.5, -0.1), (-0.01, 0.3), "accuracy falls, as in the paper; a change"),
        ((-0.5, -0.1), (-0.3, -0.1), "but traces get shorter"),
        ((-0.5, 0.1), (-0.3, 0.1), "neither"),
    ],
)
def test_the_sentences_follow_whole_intervals(compared, accuracy, length, says):
    lines = rivals_report.verdicts(changed(compared, "FastV 25 %", accuracy, length), 0.25)
    [line] = [line for line in lines if "FastV 25 %" in line.split(":")[0] and not line.startswith("VisionPulse")]
    assert says in line


def test_the_ordering_is_about_pruning_at_prefill(compared):
    names = rivals_report.at_prefill(compared, 0.25)
    assert {"FastV 25 %", "DivPrune 25 %", "at prefill 25 %"} <= set(names)
    assert not {"VisionPulse 25 %", "random 25 %", "uniform 25 %", "oracle 25 %"} & set(names)
    for kept, takes_part in ((0.27, True), (0.28, False), (0.23, True), (0.22, False)):
        points = dict(compared.frontier.points)
        for name in ("LOOK-M, own setting", "SparseVLM, own setting", "MVW, own setting"):
            points[name] = replace(points[name], retention=kept)
        names = rivals_report.at_prefill(replace(compared, frontier=replace(compared.frontier, points=points)), 0.25)
        assert [name for name in names if "own" in name] == ["LOOK-M, own setting"] * takes_part
    assert rivals_report.verdicts(compared, 0.9) == ["Nothing was pruned at prefill to 90 %; add it to the budgets."]


def test_more_and_less_accurate_follow_whole_intervals(compared, monkeypatch):
    like = compared.frontier.points["VTW, own setting"].length
    gains = {"FastV 25 %": (0.1, 0.3), "DivPrune 25 %": (-0.3, -0.1), "oracle 25 %": (-0.3, 0.1)}

    def made_up(_, arm, over):
        return interval(like, *gains[over]) if arm == "VisionPulse 25 %" and over in gains else None

    monkeypatch.setattr(rivals_report, "advantage", made_up)
    assert rivals_report.verdicts(compared, 0.25)[-3:] == [
        "VisionPulse 25 % is more accurate than FastV 25 %.",
        "VisionPulse 25 % is less accurate than DivPrune 25 %.",
        "VisionPulse 25 % cannot be told apart from oracle 25 %.",
    ]


def test_the_table_has_every_arm_and_the_figure_every_point(compared):
    table = rivals_report.table(compared)
    assert set(table.index) == set(compared.frontier.points) - {"dense"}
    assert table.loc["VTW, own setting", "kept"] == "0.0 %"
    assert [line for line in rivals_report.own_retention(compared) if line == "VTW, own setting: 0.0 % kept"]
    drawn = rivals_figures.frontier_figure(compared).axes[1]
    lines = [(line.get_marker(), x, y) for line in drawn.lines for x, y in zip(*line.get_data(), strict=True)]
    for label, names in compared.arms.items():
        marker = "o" if rivals.all_rivals()[label].at_prefill else "^"
        for point in (compared.frontier.points[name] for name in names):
            assert (marker, 100 * point.retention, 100 * point.change.length.estimate) in lines


def test_the_kept_sets_are_shown_at_four_steps_under_their_retention(vlm, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    arms = {k: v for k, v in rivals.rival_arms([0.25], vlm.n_layers).items() if k in ("VisionPulse", "VTW", "random")}
    traces = rivals_figures.decode_one(vlm, samples[0], arms, 9)
    last = min(map(len, traces.values())) - 1
    steps = rivals_figures.shown_steps(traces)
    assert len(steps) == 4 and (steps[0], steps[-1]) == (1, last) and max(np.diff(steps)) - min(np.diff(steps)) <= 1
    page = rivals_figures.kept_page(traces, steps)
    assert [ax.get_ylabel() for ax in page.axes if ax.get_ylabel()] == [f"step {step}" for step in steps]
    titles = [ax.get_title() for ax in page.axes if ax.get_title()]
    assert titles == ["VisionPulse\n25.0 %", "VTW\n0.0 %", "random\n25.0 %"]
