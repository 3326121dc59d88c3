"""The report of notebook 08, on tables and arrays made by hand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from visionpulse_analysis import measures
from visionpulse_analysis.studies import sweep_report


@pytest.fixture
def table():
    """Four samples x two seeds: "half" is right half as often, and two tokens shorter, than dense; one trace failed."""
    rows = []
    for sample in range(4):
        for seed in range(2):
            right = (sample + seed) % 2 == 0 or sample < 2
            base = {"model": "m", "sample": f"s{sample}", "seed": seed, "status": "done", "kept": 1.0}
            rows.append({**base, "pruner": "dense", "right": right, "tokens": 10 + sample})
            halved = {"right": right and sample % 2 == 0, "tokens": 8 + sample, "kept": 0.5}
            rows.append({**base, "pruner": "half", **halved})
    rows[-1] |= {"status": "failed", "right": pd.NA, "tokens": pd.NA}
    return pd.DataFrame(rows).astype({"right": "boolean", "tokens": "Int64"})


def test_arms_are_paired_by_sample_and_seed(table):
    shuffled = table.sample(frac=1, random_state=1).sort_values("pruner", kind="stable")
    for given in (table, shuffled):
        results = sweep_report.compare_pruners(given)
        dense, half = results["dense"], results["half"]
        assert (dense.n, dense.failed, half.n, half.failed) == (8, 0, 7, 1)
        assert dense.change_of_length is None and dense.accuracy.estimate == 6 / 8 and half.kept == 0.5
        # The failed trace leaves its pair out: seven pairs remain.
        pairs = table[(table["pruner"] == "dense")].iloc[:7]
        assert half.change_of_length.estimate == pytest.approx(-14 / pairs["tokens"].sum())
        right = table[table["pruner"] == "half"]["right"].iloc[:7]
        assert half.change_of_accuracy.estimate == pytest.approx(right.mean() - pairs["right"].mean())
        assert half.change_of_accuracy.n_clusters == 4
    text = sweep_report.results_table(results).loc["half", "length against dense"]
    assert text.startswith(f"{100 * half.change_of_length.estimate:+.1f} %")


def test_unknown_answers_give_no_accuracy(table):
    table.loc[1, "right"] = pd.NA
    results = sweep_report.compare_pruners(table)
    assert results["half"].accuracy is None and results["half"].change_of_accuracy is None
    assert results["dense"].accuracy is not None and results["half"].change_of_length is not None
    assert "accuracy cannot be compared" in sweep_report.verdicts(results)


def test_two_models_are_not_mixed(table):
    with pytest.raises(ValueError, match="rows of 2 models"):
        sweep_report.compare_pruners(pd.concat([table, table.assign(model="n")]))
    with pytest.raises(ValueError, match="no finished trace"):
        sweep_report.compare_pruners(table[table["status"] == "failed"])


def interval(low, estimate, high):
    from visionpulse_analysis.statistics import Interval

    return Interval(estimate, low, high, 5, 5, 0.95, "expanded")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ((-0.3, -0.2, -0.1), "loses 20.0 points [-30.0, -10.0]"),
        ((0.1, 0.2, 0.3), "gains 20.0 points [10.0, 30.0]"),
        ((-0.1, 0.1, 0.3), "no change of accuracy can be told (+10.0 points [-10.0, 30.0])"),
        ((np.nan, 0.0, np.nan), "no accuracy differs"),
    ],
)
def test_sentences_follow_their_intervals(change, sentence):
    arm = sweep_report.ArmResult(5, 0, 0.1, interval(1, 2, 3), None, None, interval(*change))
    assert sentence in sweep_report.verdicts({"p": arm})


@pytest.fixture
def attention():
    """Three traces of 4, 2 and 1 steps; three patches."""
    values = np.full((3, 4, 1, 3), np.nan, np.float32)
    for trace, steps in enumerate((4, 2, 1)):
        values[trace, :steps] = np.random.default_rng(trace).random((steps, 1, 3))
    coords = {"sample": ("trace", ["a", "b", "c"]), "pruner": ("trace", ["p", "p", "p"])}
    return xr.DataArray(values, dims=("trace", "step", "layer", "patch"), coords=coords).chunk(trace=2)


def test_a_measure_goes_over_the_steps_that_exist(attention):
    lazy = sweep_report.by_step(attention, measures.effective_count)
    assert lazy.dims == ("trace", "step", "layer") and lazy.chunks is not None
    values, found = attention.values, lazy.compute().values
    assert (np.isnan(found) == np.isnan(values[..., 0])).all()
    assert found[1, 1, 0] == pytest.approx(measures.effective_count(values[1, 1, 0].astype(float)), rel=1e-6)


def test_curves_stop_where_fewer_than_half_of_the_traces_go_on(attention):
    first = attention.isel(layer=0, patch=0).compute()
    steps, intervals = sweep_report.step_curves(first)["p"]
    assert steps.tolist() == [0, 1]
    assert intervals[1].estimate == pytest.approx(first.values[:2, 1].mean()) and intervals[1].n_clusters == 2
