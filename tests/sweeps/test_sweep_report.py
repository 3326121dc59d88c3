"""The report of notebook 08, on tables and arrays made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from visionpulse_analysis.metrics.attention import effective_count
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import Estimate, judge
from visionpulse_analysis.studies.sweep import figures as draw
from visionpulse_analysis.studies.sweep import measure, report


@pytest.fixture
def table():
    """Four samples x two seeds: "half" is right half as often, and two tokens shorter, than dense; one trace failed."""
    rows = []
    for sample in range(4):
        for seed in range(2):
            right = (sample + seed) % 2 == 0 or sample < 2
            base = {"model": "m", "sample": f"s{sample}", "seed": seed, "status": "done", "kept": 1.0}
            base["finished"] = True
            rows.append({**base, "pruner": "dense", "right": right, "tokens": 10 + sample})
            halved = {"right": right and sample % 2 == 0, "tokens": 8 + sample, "kept": 0.5}
            rows.append({**base, "pruner": "half", **halved})
    rows[-1] |= {"status": "failed", "right": pd.NA, "tokens": pd.NA, "finished": pd.NA}
    return pd.DataFrame(rows).astype({"right": "boolean", "tokens": "Int64", "finished": "boolean"})


def test_arms_are_paired_by_sample_and_seed(table):
    shuffled = table.sample(frac=1, random_state=1).sort_values("pruner", kind="stable")
    for given in (table, shuffled):
        results = measure.compare_pruners(given)
        dense, half = results["dense"], results["half"]
        assert (dense.n, dense.failed, half.n, half.failed) == (8, 0, 7, 1)
        assert dense.change is None and dense.accuracy.value == 6 / 8 and half.kept == 0.5
        # The failed trace leaves its pair out: seven pairs remain.
        pairs = table[(table["pruner"] == "dense")].iloc[:7]
        assert half.change.length.value == pytest.approx(-14 / pairs["tokens"].sum())
        right = table[table["pruner"] == "half"]["right"].iloc[:7]
        assert half.change.truth.change.value == pytest.approx(right.mean() - pairs["right"].mean())
        assert half.change.truth.change.n_clusters == 4
    text = report.results_table(results).loc["half", "length against dense"]
    assert text.startswith(f"{100 * half.change.length.value:+.1f} %")


def test_unknown_answers_give_no_accuracy(table):
    table.loc[1, "right"] = pd.NA
    results = measure.compare_pruners(table)
    assert results["half"].accuracy is None and results["half"].change.truth is None
    assert results["dense"].accuracy is not None and results["half"].change is not None
    assert "accuracy cannot be compared" in report.verdicts(results)


def test_two_models_are_not_mixed(table):
    with pytest.raises(ValueError, match="rows of 2 models"):
        measure.compare_pruners(pd.concat([table, table.assign(model="n")]))
    with pytest.raises(ValueError, match="no finished trace"):
        measure.compare_pruners(table[table["status"] == "failed"])


def test_cut_off_traces_stand_apart(table):
    half = table["pruner"] == "half"
    never_ends = half & (table["sample"] == "s1")
    table.loc[never_ends, ["finished", "tokens"]] = [False, 99]
    results = measure.compare_pruners(table)
    arm = results["half"]
    assert (arm.n_cut_off, arm.change.n_both, arm.change.n_pairs) == (2, 5, 7)
    ended = table[half & ~never_ends & (table["status"] == "done")]
    assert arm.length.value == pytest.approx(ended["tokens"].mean())
    assert arm.change.tokens.value == -2  # all pairs together would say that traces became longer
    row = report.results_table(results).loc["half"]
    assert (row["cut off"], row["pairs that ended"]) == ("2 of 7", "5 of 7")
    said = report.verdicts(results)
    assert "over the 5 of 7 pairs that ended" in said and "Cut off at the limit: 2 of 7 traces, densely 0" in said
    assert "Only here 2, longer by at least 88 tokens" in said and "3 of them" in said
    assert "cut off (%)" in [ax.get_xlabel() for ax in draw.pruners_page(results).axes]
    with pytest.raises(ValueError, match="finished"):
        measure.compare_pruners(table.drop(columns="finished"))


def test_a_sweep_in_which_nothing_ended_is_reported(table):
    table["finished"] = False
    results = measure.compare_pruners(table)
    assert "length cannot be compared" in report.verdicts(results)
    assert len(draw.pruners_page(results).axes) == 2 and len(report.results_table(results)) == 2
    json.dumps(as_json(results), allow_nan=False)


def interval(low, estimate, high):
    return Estimate(estimate, low, high, 5, 5, 0.95, "made up")


@pytest.mark.parametrize(
    ("change", "p", "sentence"),
    [
        ((-0.3, -0.2, -0.1), 0.001, "loses 20.0 points [-30.0, -10.0]"),
        ((0.1, 0.2, 0.3), 0.001, "gains 20.0 points [10.0, 30.0]"),
        ((-0.3, -0.2, -0.1), 0.04, "no change of accuracy is shown (-20.0 points [-30.0, -10.0])"),
        ((np.nan, 0.0, np.nan), 1.0, "no change of accuracy is shown (+0.0 points)"),
    ],
)
def test_sentences_follow_tests_adjusted_together(change, p, sentence):
    judged = judge({"accuracy": (interval(*change), p), "length": (interval(-1, 0, 1), 1.0)}, "made up")
    arm = measure.ArmResult(5, 0, 0, 0.1, interval(0, 0, 0.4), interval(1, 2, 3), None, judged=judged)
    assert sentence in report.verdicts({"p": arm})


@pytest.fixture
def attention():
    """Three traces of 4, 2 and 1 steps; three patches."""
    values = np.full((3, 4, 1, 3), np.nan, np.float32)
    for trace, steps in enumerate((4, 2, 1)):
        values[trace, :steps] = np.random.default_rng(trace).random((steps, 1, 3))
    coords = {"sample": ("trace", ["a", "b", "c"]), "pruner": ("trace", ["p", "p", "p"])}
    return xr.DataArray(values, dims=("trace", "step", "layer", "patch"), coords=coords).chunk(trace=2)


def test_a_measure_goes_over_the_steps_that_exist(attention):
    lazy = measure.by_step(attention, effective_count)
    assert lazy.dims == ("trace", "step", "layer") and lazy.chunks is not None
    values, found = attention.values, lazy.compute().values
    assert (np.isnan(found) == np.isnan(values[..., 0])).all()
    assert found[1, 1, 0] == pytest.approx(effective_count(values[1, 1, 0].astype(float)), rel=1e-6)


def test_curves_stop_where_fewer_than_half_of_the_traces_go_on(attention):
    first = attention.isel(layer=0, patch=0).compute()
    steps, intervals = measure.step_curves(first)["p"]
    assert steps.tolist() == [0, 1]
    assert intervals[1].value == pytest.approx(first.values[:2, 1].mean()) and intervals[1].n_clusters == 2
