"""What holds on tiny random models holds on trained weights: 30 layers of width 576, a real tokenizer, long traces."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from any_model import make_for_any

import visionpulse_analysis as vpa
from visionpulse_analysis.attention.gathered import Gathered
from visionpulse_analysis.decoding.exactness import checks

PHOTO = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
QUESTIONS = ["What is in the picture?", "Count slowly from one to one hundred, and say why you stop."]


@pytest.fixture
def endless(exact, monkeypatch):
    """The model without its end token."""
    monkeypatch.setattr(
        exact.model.generation_config, "eos_token_id", exact.tokenizer.convert_tokens_to_ids("<row_6_col_6>")
    )
    return exact


def stock_tokens(vlm, question, steps):
    """What the library's own greedy `generate` says."""
    prompt = vlm.prompt(PHOTO, question)
    inputs = vlm.to_device(vlm.family.batch([prompt], padding=0))
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    with torch.inference_mode():
        out = vlm.model.generate(**inputs, max_new_tokens=steps, do_sample=False)
    return out[0, len(prompt.ids) :].tolist()


def ids_of(vlm, trace):
    return trace.token_ids.tolist()


def test_all_checks_hold(vlm):
    report = vpa.check(vlm)
    assert report.passed, str(report)


def test_bounds_that_fit_trained_weights_still_find_a_gathering_of_the_wrong_keys(vlm, monkeypatch):
    right = Gathered._copied
    monkeypatch.setattr(Gathered, "_copied", lambda self, states: right(self, states.roll(1, dims=2)))
    found = checks._gathered(checks._Subject(vlm))
    assert not found.passed, found.detail


def test_tokens_are_those_of_the_library(endless):
    for question in QUESTIONS:
        trace = vpa.decode(endless, PHOTO, question, max_new_tokens=24)
        assert ids_of(endless, trace) == stock_tokens(endless, question, 24)


def test_a_batch_is_each_of_its_rows_alone(endless):
    together = vpa.decode(endless, [PHOTO, PHOTO[:64, :64]], QUESTIONS, max_new_tokens=16)
    for photo, question, row in zip([PHOTO, PHOTO[:64, :64]], QUESTIONS, together, strict=True):
        alone = vpa.decode(endless, photo, question, max_new_tokens=16)
        assert row.tokens == alone.tokens
        np.testing.assert_allclose(row.mass.values, alone.mass.values, atol=2e-6)


@pytest.mark.parametrize("name", sorted(vpa.list_pruners()))
def test_every_pruner_decodes(endless, name):
    options = {"budget": 0.25} if "budget" in {one.name for one in fields(vpa.list_pruners()[name])} else {}
    trace = vpa.decode(endless, PHOTO, QUESTIONS[0], pruner=make_for_any(name, **options), max_new_tokens=6)
    assert len(trace) == 6 and np.isfinite(trace.logprobs).all()
    rows = trace.attention.values
    assert (rows >= 0).all() and (trace.mass.values <= 1 + 1e-5).all()


def test_a_trace_of_a_thousand_tokens(endless, tmp_path):
    trace = vpa.decode(endless, PHOTO, QUESTIONS[1], max_new_tokens=1000)
    assert len(trace) == 1000 and not trace.meta["finished"]
    assert ids_of(endless, trace) == stock_tokens(endless, QUESTIONS[1], 1000)
    rows, mass = trace.attention.values.astype(float).sum(axis=-1), trace.mass.values
    np.testing.assert_allclose(rows, mass, rtol=2e-3, atol=1e-5)
    trace.save(tmp_path / "long.zarr")
    back = vpa.Trace.open(tmp_path / "long.zarr")
    assert back.text == trace.text and back.tokens == trace.tokens
