"""All pruners at the same retention: they keep that share, and numbers and sentences are those of counting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.pruners.base import BeforeModel
from visionpulse_analysis.studies.pruner_comparison import figures as draw
from visionpulse_analysis.studies.pruner_comparison import measure as rivals
from visionpulse_analysis.studies.pruner_comparison import report
from visionpulse_analysis.studies.pruner_comparison.settings import Basis
from visionpulse_analysis.studies.shared.arms import Arms

OPTIONS = {"max_new_tokens": 5, "batch_size": 3}


@pytest.fixture(scope="module")
def samples():
    return scene_samples(3, cells=4)


@pytest.fixture(scope="module")
def basis(vlm):
    return Basis.of(vlm, scene_samples(4, seed=1, cells=4), 5)


@pytest.fixture(scope="module")
def compared(vlm, samples, basis, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISIONPULSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield rivals.compare_rivals(vlm, samples, rivals.rival_arms([0.25], basis), **OPTIONS)


def test_no_pruner_of_the_suite_is_left_out():
    named = {part for rival in rivals.RIVALS.values() for part in rival.name.split(" | ")}
    ours = {n: kind for n, kind in vpa.list_pruners().items() if kind.__module__.startswith("visionpulse_analysis")}
    weighing = {name for name, kind in ours.items() if kind.reweights}  # which keep no share to be compared at
    assert named == set(ours) - {"keep_all"} - weighing and weighing == {"adaptvis"}  # the former is dense
    assert not weighing & {rival.name for rival in rivals.all_rivals().values()}
    assert all(rival.matched or rival.own is not None for rival in rivals.RIVALS.values())


def test_what_is_kept_is_the_mean_over_the_samples(vlm, samples, basis, compared):
    for label in ("PyramidDrop", "MVW", "VisiPruner"):
        [(name, pruner), *_] = rivals.rival_arms([0.25], basis)[label].items()
        found = []
        for sample in samples:
            trace = vpa.decode(vlm, sample.image, sample.question, pruner=pruner, layers="none", max_new_tokens=5)
            first = {"PyramidDrop": 2, "MVW": 0, "VisiPruner": 4}[label]
            found.append(trace.k_per_layer.values[1:, first:].mean() / len(trace.grid))
        assert compared.kept[name] == pytest.approx(np.mean(found))
        assert compared.numbers()[name]["retention"] == compared.kept[name]
    assert compared.kept["dense"] == 1.0


def test_a_pruner_defined_later_takes_part(vlm):
    before = set(rivals.all_rivals())

    @dataclass(frozen=True)
    class DefinedLater(BeforeModel):
        name = "defined_later"
        budget: float = 0.1

    assert set(rivals.all_rivals()) - before == {"defined_later"}
    arms = rivals.rival_arms([0.5], Basis.of(vlm))
    assert arms["defined_later"] == {"defined_later 50 %": DefinedLater(0.5)}


def test_costs_are_those_of_each_trace_alone(vlm, samples, basis, compared):
    arms = rivals.rival_arms([0.25], basis)
    chosen = ("FastV", "ShortV", "MVW", "LOOK-M", "VisionPulse", "VisiPruner")
    pruners = {"dense": None, **{name: p for label in chosen for name, p in arms[label].items()}}
    images, questions = [s.image for s in samples], [s.question for s in samples]
    for name, pruner in pruners.items():
        traces = vpa.decode(vlm, images, questions, layers="none", pruner=pruner, max_new_tokens=5)
        costs = [vpa.costs_of(trace) for trace in traces]
        rows = compared.arms.rows(name)
        assert np.allclose(rows["flops"], [c.flops.sum() for c in costs], rtol=1e-12), name
        assert np.allclose(rows["kv_bytes_read"], [c.kv_bytes_read.sum() for c in costs]), name
        assert np.allclose(rows["peak_kv_bytes"], [c.peak_kv_bytes for c in costs]), name
    change = compared.cost_change("FastV 25 %", "flops").value
    dense, pruned = (compared.arms.rows(name)["flops"].sum() for name in ("dense", "FastV 25 %"))
    assert change == pytest.approx(pruned / dense - 1)


def test_the_ordering_is_about_pruning_at_prefill(compared, monkeypatch):
    names = report.at_prefill(compared, 0.25)
    assert {"FastV 25 %", "DivPrune 25 %", "at prefill 25 %"} <= set(names)
    assert not {"VisionPulse 25 %", "random 25 %", "uniform 25 %", "oracle 25 %"} & set(names)
    for kept, takes_part in ((0.31, True), (0.32, False), (0.19, True), (0.18, False)):
        # "added" has no budget, SparseVLM has one; ST3 settles at steps.
        added = {
            "added": replace(rivals.RIVALS["VTW"], matched=None),
            "ST3": replace(rivals.RIVALS["ST3"], matched=None),
        }
        monkeypatch.setattr(report, "all_rivals", lambda added=added: rivals.RIVALS | added)
        shares = dict.fromkeys(("added, own setting", "ST3, own setting", "SparseVLM, own setting"), kept)
        again = compared.arms.rows("VTW, own setting").assign(arm="added, own setting")
        made_up = replace(compared, kept=compared.kept | shares, arms=Arms(pd.concat([compared.arms.table, again])))
        names = report.at_prefill(made_up, 0.25)
        assert [name for name in names if "own" in name] == ["added, own setting"] * takes_part
    assert report.verdicts(compared, 0.9) == ["Nothing was pruned at prefill to 90 %; add it to the budgets."]


def test_the_table_has_every_arm(compared):
    table = report.table(compared)
    assert set(table.index) == set(compared.arms.names) - {"dense"}
    assert table.loc["LOOK-M 25 %", ["pruner", "settled"]].tolist() == ["lookm", "at prefill"]
    assert table.loc["VTW 25 %", ["kept", "at last layer"]].tolist() == ["25.0 %", "0.0 %"]
    assert table.loc["FastV 25 %", ["kept", "at last layer"]].tolist() == ["25.0 %", "25.0 %"]
    own = compared.kept["VTW, own setting"]
    assert f"VTW, own setting: {100 * own:.1f} % kept" in report.own_retention(compared)
    groups = {
        "VTW": ["VTW 10 %", "VTW, own setting"],
        "MVW": ["MVW, own setting"],
        "FastV": ["FastV 5 %", "FastV 10 %"],
    }
    assert report.not_matched(replace(compared, groups=groups), [0.05, 0.1, 0.1]) == [
        "5 % is not kept by any setting of VTW and MVW.",
        *["10 % is not kept by any setting of MVW."] * 2,
    ]
    assert report.not_matched(compared, []) == []


def test_the_kept_sets_are_shown_at_four_steps_under_their_retention(vlm, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    arms = {k: v for k, v in rivals.rival_arms([0.5], Basis.of(vlm)).items() if k in ("VisionPulse", "VTW", "random")}
    traces = draw.decode_one(vlm, samples[0], arms, 9)
    last = min(map(len, traces.values())) - 1
    steps = draw.shown_steps(traces)
    assert len(steps) == 4 and (steps[0], steps[-1]) == (1, last) and max(np.diff(steps)) - min(np.diff(steps)) <= 1
    page = draw.kept_page(traces, steps)
    # What is settled at prefill is shown once.
    rows = [ax.get_ylabel() for ax in page.axes if ax.get_ylabel()]
    assert rows == [*(f"step {step}" for step in steps), "all steps"]
    titles = [ax.get_title() for ax in page.axes if ax.get_title()]
    assert "what the last layer sees" in " ".join(page.get_supxlabel().split())
    assert titles == ["VisionPulse\n50.0 % kept", "random\n50.0 % kept", "VTW\n50.0 % kept"]
