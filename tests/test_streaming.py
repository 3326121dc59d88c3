"""Streaming while decoding: what is on disk equals what is returned, and an interrupted run keeps its steps."""

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.pruners import VisionPulse

QUESTION = "where is the red circle ?"
QUESTIONS = [QUESTION, "how many blue shapes ?", "is the red star left of the blue cross ?"]


def test_a_streamed_trace_equals_the_returned_one(vlm, pictures, tmp_path):
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    plain = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=6, pruner=VisionPulse())
    streamed = vpa.decode(
        vlm, pictures, QUESTIONS, max_new_tokens=6, pruner=VisionPulse(), store=store, ids=["a", "b", "c"]
    )
    for name, a, b in zip("abc", plain, streamed, strict=True):
        assert a.data_hash == b.data_hash == store[name].data_hash
        assert store[name].meta["complete"] and store[name].meta["id"] == name


def test_an_interrupted_run_leaves_its_steps_and_the_model_as_it_was(vlm, pictures, tmp_path, monkeypatch):
    full = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6)
    calls = []

    def interrupted(self, *args, original=Batch.forward, **inputs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, *args, **inputs)

    monkeypatch.setattr(Batch, "forward", interrupted)
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    with pytest.raises(KeyboardInterrupt):
        vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6, store=store, ids="cut")
    left = store["cut"]
    assert left.meta["complete"] is False
    assert left.tokens == full.tokens[:4]
    assert np.array_equal(left.attention.values, full.attention.values[:4])
    assert attention.active_interceptors(vlm.model) == 0


def test_a_store_needs_ids(vlm, pictures, tmp_path):
    with pytest.raises(ValueError, match="needs ids"):
        vpa.decode(vlm, pictures[0], QUESTION, store=vpa.TraceStore(tmp_path / "s", mode="a"))
