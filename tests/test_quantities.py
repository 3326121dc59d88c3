"""The table of recorded quantities: what is computed, what is kept, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from slow_quantities import slow_quantities

import visionpulse_analysis as vpa
from visionpulse_analysis.traces import quantities as table
from visionpulse_analysis.traces.exchange import read_npz, step_table, write_npz
from visionpulse_analysis.traces.quantities import BUILT_IN, Quantity

QUESTIONS = ["where is the red circle ?", "how many ?"]
BOTH = ["head_entropy", "value_norm_attention"]
OPTIONS: dict[str, Any] = {"record": BOTH, "heads": "all", "max_new_tokens": 4}
PER_PATCH = ("position", "image", "frame", "row", "col", "box")
# The random weights are large and values reach 1e2; float32 sums in another order, and eager rows of another kernel.
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(table, "_registered", dict(table._registered))


@pytest.fixture(scope="module")
def dense(vlm, pictures):
    return vpa.decode(vlm, pictures[:2], QUESTIONS, **OPTIONS)


def assert_slow(vlm, picture, question, trace):
    expected = slow_quantities(vlm, vlm.prompt(picture, question), trace)
    for name in BOTH:
        found = trace.data[name].sel(head=trace.heads).values
        np.testing.assert_allclose(found, expected[name][:, trace.layers][:, :, trace.heads], **CLOSE, err_msg=name)


def test_a_batch_of_two_pictures_with_shared_heads(vlm, pictures, dense):
    config = vlm.model.config.text_config
    assert config.num_key_value_heads < config.num_attention_heads
    for picture, question, trace in zip(pictures, QUESTIONS, dense, strict=False):
        assert trace.data["value_norm_attention"].dims == ("step", "layer", "head", "patch")
        assert_slow(vlm, picture, question, trace)
    assert len(dense[0].grid) != len(dense[1].grid)


@pytest.mark.parametrize("execution", ["masked", "gathered"])
@pytest.mark.parametrize("pruner", ["random(budget=0.3, anchor_layer=0)", "last_step_only(budget=0.2, anchor_layer=0)"])
def test_under_a_pruner(vlm, pictures, execution, pruner):
    pruner = vpa.make_pruner(pruner)
    traces = vpa.decode(vlm, pictures[:2], QUESTIONS, pruner=pruner, execution=execution, **OPTIONS)
    for picture, question, trace in zip(pictures, QUESTIONS, traces, strict=False):
        assert (trace.k_per_layer.values == trace.k.values[:, None]).all() and trace.k.values[1] < len(trace.grid)
        assert_slow(vlm, picture, question, trace)
        assert (trace.data["value_norm_attention"].values[1:][..., :, ~trace.kept.values[1]][0] == 0).all()


def test_inside_generate(vlm, pictures):
    prompts = [vlm.prompt(*asked) for asked in zip(pictures, QUESTIONS, strict=False)]
    inputs = vlm.family.batch(prompts, padding=0)
    for pruner in (None, vpa.make_pruner("random(budget=0.3, anchor_layer=0)")):
        with vpa.watch(
            vlm.model, vlm.tokenizer, locate=lambda *_: [p.grid for p in prompts], record=BOTH, heads=[3, 0],
            layers=[2, 5], pruner=pruner,
        ) as w:  # fmt: skip
            vlm.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        for picture, question, trace in zip(pictures, QUESTIONS, w.traces, strict=False):
            assert trace.heads == [3, 0] and trace.layers == [2, 5]
            assert_slow(vlm, picture, question, trace)


def test_recording_changes_nothing_else_and_the_mean_over_heads_is_that_of_all(vlm, pictures, dense):
    plain = vpa.decode(vlm, pictures[:2], QUESTIONS, heads="all", max_new_tokens=4)
    mean = vpa.decode(vlm, pictures[:2], QUESTIONS, max_new_tokens=4, record=BOTH)
    for trace, without, averaged in zip(dense, plain, mean, strict=True):
        assert Quantity.from_dict(trace.quantities["head_entropy"].to_dict()) == vpa.list_quantities()["head_entropy"]
        assert list(without.quantities) == ["attention", "mass", "token_id", "logprob"]
        for name in without.quantities:
            xr.testing.assert_identical(trace.data[name], without.data[name])
        for name in BOTH:
            found, expected = averaged.data[name], trace.data[name].mean("head")
            assert found.dims == expected.dims
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-7)


def test_arms_of_one_prefill_give_what_each_alone_gives(vlm, pictures, dense):
    arms = [None, vpa.make_pruner("random(budget=0.3)")]
    both = vpa.decode(vlm, pictures[:2], QUESTIONS, pruner=arms, **OPTIONS)
    alone = vpa.decode(vlm, pictures[:2], QUESTIONS, pruner=arms[1], **OPTIONS)
    for made, other in zip([*both[0], *both[1]], [*dense, *alone], strict=True):
        assert made.data_hash == other.data_hash


def test_rows_that_join_a_batch_late(vlm, pictures):
    asked = {"max_new_tokens": 6, "record": ["head_entropy"], "layers": [1, 4], "seed": 3}
    pictures, questions = [*pictures, *pictures[:2]], [*QUESTIONS, *QUESTIONS, "where ?"]
    pruner = vpa.make_pruner("random(budget=0.5)")
    together = vpa.decode(vlm, pictures, questions, batch_size=2, pruner=pruner, **asked)
    for n, (picture, question, trace) in enumerate(zip(pictures, questions, together, strict=True)):
        alone = vpa.decode(vlm, picture, question, pruner=pruner, **{**asked, "seed": 3 + n})
        np.testing.assert_allclose(trace.data["head_entropy"].values, alone.data["head_entropy"].values, **CLOSE)


def test_what_the_table_says_of_attention_and_mass_is_what_is_recorded(vlm, pictures):
    """The recorder works these out for all layers at once; their rows of the table say how, one call at a time."""
    again = []
    for name in ("attention", "mass"):
        row = BUILT_IN[name]
        again.append(Quantity(f"{name}_again", row.axes, row.unit, row.how, row.range, compute=row.compute))
    trace = vpa.decode(vlm, pictures[0], QUESTIONS[0], record=again, heads="all", max_new_tokens=3)
    assert np.array_equal(trace.data["attention_again"].values.astype(np.float16), trace.attention.values)
    assert np.allclose(trace.data["mass_again"].values, trace.mass.values, atol=1e-6)


# A user's own.


def test_one_of_a_notebook_goes_to_the_store_and_to_readers_without_the_function(vlm, pictures, tmp_path):
    @vpa.quantity(axes=("step", "layer", "head"), unit="share of the softmax row", range=(0, 1))
    def strongest(call):
        """The weight of the most attended patch.

        More words.
        """
        return call.patch_weights.amax(dim=-1)

    store = vpa.TraceStore(tmp_path / "store", mode="a")
    asked = {"record": [strongest, "head_entropy"], "heads": [1, 2], "max_new_tokens": 3}
    trace = vpa.decode(vlm, pictures[0], QUESTIONS[0], store=store, ids="one", **asked)
    assert trace.data["strongest"].attrs == {
        "unit": "share of the softmax row", "how": "The weight of the most attended patch.", "range": [0, 1]
    }  # fmt: skip
    expected = trace.attention.values.astype(np.float32).max(axis=-1)
    assert np.abs(trace.data["strongest"].values - expected).max() < 1e-3
    write_npz(trace, tmp_path / "trace.npz", layer=0)
    del table._registered["strongest"]
    for read in (store["one"], read_npz(tmp_path / "trace.npz")):
        xr.testing.assert_identical(read.data.load(), trace.data)
        assert read.data_hash == trace.data_hash
        found = read.quantities["strongest"]
        assert found == strongest and "amax" in found.source
        with pytest.raises(TypeError, match="without its function"):
            found(None)
    rows = step_table(store["one"])
    assert np.allclose(rows["strongest"], trace.data["strongest"].values.ravel())
    reader = """if True:
        import sys, visionpulse_analysis as vpa
        found = vpa.TraceStore(sys.argv[1])["one"].data["strongest"]
        assert "torch" not in sys.modules
        print(float(found.sum()), found.unit)
    """
    said = subprocess.run([sys.executable, "-c", reader, str(store.path)], capture_output=True, text=True, check=True,
                          env={**os.environ}).stdout  # fmt: skip
    assert said.split(maxsplit=1)[1].strip() == "share of the softmax row"
    assert float(said.split()[0]) == pytest.approx(float(trace.data["strongest"].sum()))


def test_a_decode_that_is_cut_off_leaves_its_quantities(vlm, pictures, tmp_path):
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    steps = []

    @vpa.quantity(axes=("step", "layer"), unit="steps")
    def count(call):
        """Raises at the third step."""
        steps.append(call)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return torch.full((len(call.query),), float(len(steps)))

    with pytest.raises(KeyboardInterrupt):
        vpa.decode(vlm, pictures[0], QUESTIONS[0], record=["count"], layers=4, store=store, ids="cut", max_new_tokens=9)
    assert store["cut"].data["count"].values.tolist() == [[1.0], [2.0]] and not store["cut"].meta["complete"]


def test_a_cell_that_is_run_again_replaces_its_quantity():
    for unit in ("nats", "bits"):

        @vpa.quantity(axes=("step", "layer"), unit=unit, how="somehow")
        def again(call):
            return call.weights[:, 0, 0]

    assert vpa.list_quantities()["again"].unit == "bits"


def nothing(call):
    """Nothing."""


WRONG = {
    "axes": ({"axes": ("step", "head"), "unit": "nats"}, r"axes of quantity 'nothing' must be one of \(step, layer\)"),
    "order": ({"axes": ("layer", "step"), "unit": "nats"}, "must be one of"),
    "unit": ({"axes": ("step", "layer"), "unit": ""}, "needs a unit"),
    "capitals": ({"axes": ("step", "layer"), "unit": "nats", "name": "Mine"}, "lower-case"),
    "a word of the trace": ({"axes": ("step", "layer"), "unit": "nats", "name": "token"}, "lower-case"),
    "built in": ({"axes": ("step", "layer"), "unit": "nats", "name": "mass"}, "'mass' is there already"),
    "taken": ({"axes": ("step", "layer"), "unit": "nats", "name": "head_entropy"}, "'head_entropy' is there already"),
}


@pytest.mark.parametrize("given, words", WRONG.values(), ids=WRONG)
def test_rows_that_are_none_are_refused(given, words):
    before = vpa.list_quantities()
    with pytest.raises(ValueError, match=words):
        vpa.quantity(**given)(nothing)
    assert vpa.list_quantities() == before


RECORD = {
    "unknown": (["nope"], "record names 'nope', and there is no such quantity to compute; there are .*head_entropy"),
    "built in": (["mass"], "'mass', which is recorded without being asked for"),
    "twice": (["head_entropy", "head_entropy"], "twice"),
    "no name": ([[3]], r"record names '\[3\]'"),
    "no list": (None, "record must be a list of names or quantities, got None"),
    "a row without its function": ([Quantity("mine", ("step", "layer"), "nats", "no more known")], "'mine'.*no such"),
}


@pytest.mark.parametrize("record, words", RECORD.values(), ids=RECORD)
def test_names_that_are_none_are_refused_before_anything_is_decoded(vlm, pictures, record, words):
    with pytest.raises(ValueError, match=words):
        vpa.decode(vlm, pictures[0], QUESTIONS[0], record=record)
    with pytest.raises(ValueError, match=words), vpa.watch(vlm.model, record=record):
        pass


def test_no_layer_to_record_it_at(vlm, pictures):
    with pytest.raises(ValueError, match=r"record names \['head_entropy'\], but no layer is recorded"):
        vpa.decode(vlm, pictures[0], QUESTIONS[0], record="head_entropy", layers="none")


VALUES = {
    "shape": (lambda call: call.patch_weights, "gave torch.float32 .*expected a tensor of floats.*row, head"),
    "whole numbers": (lambda call: call.patch_weights.argmax(dim=-1), "gave torch.int64"),
    "no tensor": (lambda call: 3, "gave <class 'int'>"),
    "NaN": (lambda call: call.patch_weights.sum(-1) * torch.nan, "NaN or infinite.*undefined="),
    "infinite": (lambda call: 1 / (0 * call.patch_weights.sum(-1)), "NaN or infinite"),
    "range": (lambda call: 2 + call.patch_weights.sum(-1), "gave values from 2.* expected 0 to 1 nats"),
}


@pytest.mark.parametrize("compute, words", VALUES.values(), ids=VALUES)
def test_values_that_it_cannot_have_are_refused(vlm, pictures, compute, words, tmp_path):
    vpa.quantity(axes=("step", "layer", "head"), unit="nats", range=(0, 1), how="wrongly", name="wrong")(compute)
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    with pytest.raises(ValueError, match=f"quantity 'wrong' .*{words}"):
        vpa.decode(vlm, pictures[0], QUESTIONS[0], record=["wrong"], layers=4, max_new_tokens=2, store=store, ids="one")
    assert store.finished_ids == []


def test_a_layer_without_an_output_projection_says_so(vlm, pictures, monkeypatch):
    from visionpulse_analysis.attention import quantities

    monkeypatch.setattr(quantities, "OUTPUT_PROJECTIONS", ("nowhere",))
    with pytest.raises(ValueError, match=r"layer 0 .* shows no output projection for 4 heads of 32"):
        vpa.decode(vlm, pictures[0], QUESTIONS[0], record=BOTH[1], max_new_tokens=1)


def test_of_a_trace_without_a_map_sums_over_tokens_that_are_no_patches_are_not_passed_off(vlm, pictures):
    prompt = vlm.prompt(pictures[0], QUESTIONS[0])
    with vpa.watch(vlm.model, vlm.tokenizer, record=BOTH) as w:
        vlm.model.generate(**vlm.family.batch([prompt], padding=0), max_new_tokens=2, do_sample=False)
    [trace] = w.traces
    whole = SimpleNamespace(grid=prompt.grid, others=np.zeros(0, np.int64))
    placed = trace.locate(pictures[0], whole)
    for name in BOTH:
        assert np.array_equal(placed.data[name].values, trace.data[name].values)
    shown = replace(prompt.grid, **{name: getattr(prompt.grid, name)[2:] for name in PER_PATCH})
    part = SimpleNamespace(grid=shown, others=prompt.grid.position[:2])
    with pytest.raises(ValueError, match="head_entropy of this trace are over all image tokens, of which 2"):
        trace.locate(pictures[0], part)
    with vpa.watch(vlm.model, vlm.tokenizer, record=BOTH[1]) as w:
        vlm.model.generate(**vlm.family.batch([prompt], padding=0), max_new_tokens=2, do_sample=False)
    placed = w.traces[0].locate(pictures[0], part)
    assert np.array_equal(placed.data[BOTH[1]].values, trace.data[BOTH[1]].values[..., 2:])
