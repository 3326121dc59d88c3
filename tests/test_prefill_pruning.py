"""Pruners that act in prefill, against their rules stated slowly on tokens really taken out (slow_prefill.py)."""

from __future__ import annotations

import numpy as np
import pytest
import slow_prefill as slow
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis import decoding
from visionpulse_analysis.pruners import VTW, DivPrune, FastV, PyramidDrop
from visionpulse_analysis.recording import StepAttention

QUESTION = "where is the red circle ?"
RULES = [
    (FastV(budget=0.2), slow.SlowFastV),
    (FastV(5, 0.1), slow.SlowFastV),
    (FastV(3, 0.25, rope=False), slow.SlowFastV),
    (VTW(), slow.SlowVTW),
    (VTW(0), slow.SlowVTW),
    (VTW(7), slow.SlowVTW),
    (PyramidDrop(), slow.SlowPyramid),
    (PyramidDrop((1, 6), 0.3), slow.SlowPyramid),
    (DivPrune(), slow.SlowDivPrune),
    (DivPrune(0.3), slow.SlowDivPrune),
]


@pytest.fixture
def left(monkeypatch):
    """What prefill left at every layer, per run: bool [row, patch] or None."""
    kept: list[list[torch.Tensor | None]] = []

    class Watched(StepAttention):
        def take(self):
            if self.step == 0 and self.prefill is not None:
                kept.append(list(self.prefill.kept))
            return super().take()

    monkeypatch.setattr(decoding, "StepAttention", Watched)
    return kept


@pytest.mark.parametrize(
    ("pruner", "rule"), RULES, ids=lambda value: repr(value) if not isinstance(value, type) else ""
)
def test_prefill_follows_the_rule_and_hiding_equals_taking_out(vlm, pictures, left, pruner, rule):
    """Every step of every row of a padded batch; the last row has two images."""
    images = [pictures[0], pictures[1], [pictures[0], pictures[0]]]
    for execution in ("masked", "gathered"):
        traces = vpa.decode(vlm, images, [QUESTION] * 3, pruner=pruner, max_new_tokens=3, execution=execution)
        words = vlm.tokenizer(QUESTION, add_special_tokens=False).input_ids
        for row, (image, trace) in enumerate(zip(images, traces, strict=True)):
            inputs = slow.inputs_of(vlm, image, QUESTION, [], words)
            logprobs, ran = slow.slow_forward(vlm, inputs, rule(pruner, seed=row))
            n = len(trace.grid)
            for layer, kept in enumerate(left[-1]):
                assert np.flatnonzero(np.ones(n) if kept is None else kept[row, :n]).tolist() == ran[layer], layer
            assert logprobs[trace.token_ids[0]].item() == pytest.approx(trace.logprobs[0], abs=1e-4)
            for step in range(1, len(trace)):
                longer = slow.inputs_of(vlm, image, QUESTION, trace.token_ids[:step].tolist(), words)
                logprobs, _ = slow.slow_forward(vlm, longer, slow.Replay(ran))
                assert logprobs[trace.token_ids[step]].item() == pytest.approx(trace.logprobs[step], abs=1e-4)
            counts = np.array([[len(kept) for kept in ran]] * len(trace))
            assert np.array_equal(trace.k_per_layer.values, counts)
            assert np.array_equal(np.flatnonzero(trace.kept.values[0]), ran[-1])
            assert (trace.kept.values == trace.kept.values[0]).all()


@pytest.mark.parametrize(
    ("pruner", "rule"), RULES, ids=lambda value: repr(value) if not isinstance(value, type) else ""
)
def test_what_prefill_dropped_gets_no_attention(vlm, pictures, left, pruner, rule):
    trace = vpa.decode(vlm, pictures[1], QUESTION, pruner=pruner, max_new_tokens=4)
    for layer, kept in enumerate(left[-1]):
        if kept is not None:
            rows = trace.attention.values[:, layer].astype(np.float32)
            assert not rows[:, ~kept[0].numpy()].any() and (kept.any() == rows.any())
