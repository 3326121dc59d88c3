"""Pruners that act in prefill, against their rules stated slowly on tokens really taken out (slow_*.py)."""

from __future__ import annotations

import numpy as np
import pytest
import slow_prefill as slow
import slow_rules as rules
import torch
from slow_setok import SlowSeTok
from slow_sparsevlm import SlowSparseVLM
from slow_visipruner import SlowVisiPruner

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.pruners import VTW, DivPrune, FastV, PyramidDrop
from visionpulse_analysis.pruners.setok import SeTok
from visionpulse_analysis.pruners.shortv import ShortV
from visionpulse_analysis.pruners.sparsevlm import SparseVLM
from visionpulse_analysis.pruners.st3 import ST3
from visionpulse_analysis.pruners.vica import ViCA
from visionpulse_analysis.pruners.visipruner import VisiPruner
from visionpulse_analysis.pruners.yopo import YOPO
from visionpulse_analysis.pruners.zspaprune_cdpruner import CDPruner, ZSPAPrune

QUESTION = "where is the red circle ?"
SOME_HEADS = tuple(tuple((layer + head) % 3 > 0 for head in range(4)) for layer in range(8))
RULES = [
    (FastV(budget=0.2), rules.SlowFastV),
    (FastV(5, 0.1), rules.SlowFastV),
    (FastV(3, 0.25, rope=False), rules.SlowFastV),
    (VTW(), rules.SlowVTW),
    (VTW(0), rules.SlowVTW),
    (PyramidDrop(), rules.SlowPyramid),
    (PyramidDrop((1, 6), 0.3), rules.SlowPyramid),
    (PyramidDrop((1, 4, 6), ratios=(0.4, 0.4, 0.05)), rules.SlowPyramid),
    (DivPrune(), rules.SlowDivPrune),
    (ZSPAPrune(), rules.SlowZSPAPrune),
    (ZSPAPrune(0.2, core=0.0, prompt="text"), rules.SlowZSPAPrune),
    (ZSPAPrune(0.2, core=1.0), rules.SlowZSPAPrune),
    (ZSPAPrune(0.2, core=0.3, similarity="sum"), rules.SlowZSPAPrune),
    (CDPruner(), rules.SlowCDPruner),
    (CDPruner(0.2, prompt="text", flip=True), rules.SlowCDPruner),
    (ShortV(), rules.SlowShortV),
    (ShortV((0, 5)), rules.SlowShortV),
    (ViCA(), rules.SlowArchitecture),
    (YOPO(3, SOME_HEADS, 0.3, 6), rules.SlowArchitecture),
    (VisiPruner(), SlowVisiPruner),
    (VisiPruner(("shallow",), 3, first_layer="half"), SlowVisiPruner),
    (VisiPruner(("shallow",), 3, first_layer="random", patches_see=False), SlowVisiPruner),
    (VisiPruner(("middle",), 1, 0.9999, relative_threshold=0.01), SlowVisiPruner),
    (VisiPruner(shallow_layers=0, layer_threshold=0.999, exit_threshold=0.9, exit_after=1), SlowVisiPruner),
    (VisiPruner(shallow_layers=0, layer_threshold=1.0, relative_threshold=0.01), SlowVisiPruner),
    (
        VisiPruner(shallow_layers=0, layer_threshold=1.0, token_threshold=0.05, exit_threshold=0.9997, exit_after=1),
        SlowVisiPruner,
    ),
    (SparseVLM(), SlowSparseVLM),
    (SparseVLM((3,), shares=(0.2,), recycled=0.0), SlowSparseVLM),
    (SparseVLM((2, 5), "rank", scale=2.5), SlowSparseVLM),
    (SparseVLM((2, 5), "rank", scale=0.5, bias=6.0), SlowSparseVLM),
    (SparseVLM((2, 5), "paper", scale=0.7, recycled=1.0), SlowSparseVLM),
    (ST3(), rules.SlowST3),
    (ST3(1, stride=3, rate=0.6), rules.SlowST3),
    (SeTok(), SlowSeTok),
    (SeTok(0.2, neighbours=0.05, place=0.5), SlowSeTok),
    (SeTok(9.0, merge=False), SlowSeTok),
    (SeTok(budget=0.2, place=0.0), SlowSeTok),
]


@pytest.fixture
def left(monkeypatch):
    """What prefill left at every layer, per run: bool [row, patch] or None."""
    kept: list[list[torch.Tensor | None]] = []

    def prefill(self, original=Batch.prefill):
        logits = original(self)
        kept.extend(list(group.prefill.kept) for group in self.groups)
        return logits

    monkeypatch.setattr(Batch, "prefill", prefill)
    return kept


@pytest.mark.parametrize(("pruner", "rule"), RULES, ids=lambda value: "" if isinstance(value, type) else repr(value))
def test_prefill_follows_the_rule_and_hiding_equals_taking_out(vlm, pictures, left, pruner, rule):
    """Every step of every row of a padded batch; the last row has two images."""
    images = [pictures[0], [pictures[0], pictures[0][::-1].copy()]]
    execution = "gathered" if RULES.index((pruner, rule)) % 2 else "masked"
    traces = vpa.decode(vlm, images, [QUESTION] * 2, pruner=pruner, max_new_tokens=3, execution=execution)
    words = vlm.tokenizer(QUESTION, add_special_tokens=False).input_ids
    for row, (image, trace) in enumerate(zip(images, traces, strict=True)):
        stated, n = rule(pruner, seed=row), len(trace.grid)
        inputs = slow.inputs_of(vlm, image, QUESTION, [], words)
        logprobs, ran, rows = slow.slow_forward(vlm, inputs, stated)
        for layer, kept in enumerate(left[-1]):
            assert np.flatnonzero(np.ones(n) if kept is None else kept[row, :n]).tolist() == ran[layer], layer
        assert logprobs[trace.token_ids[0]].item() == pytest.approx(trace.logprobs[0], abs=1e-4)
        assert np.abs(trace.attention.values[0] - rows).max() < 1e-3  # stored as float16
        assert np.array_equal(trace.k_per_layer.values[0], [len(kept) for kept in ran])
        assert np.array_equal(np.flatnonzero(trace.kept.values[0]), ran[-1])
        if isinstance(pruner, ST3):
            continue  # goes on pruning at the steps: slow_pruners.py
        for step in range(1, len(trace)):
            longer = slow.inputs_of(vlm, image, QUESTION, trace.token_ids[:step].tolist(), words)
            logprobs, _, rows = slow.slow_forward(vlm, longer, stated, ran)
            assert logprobs[trace.token_ids[step]].item() == pytest.approx(trace.logprobs[step], abs=1e-4)
            assert np.abs(trace.attention.values[step] - rows).max() < 1e-3
        if isinstance(stated, rules.SlowArchitecture):  # prefill keeps every patch, and steps see none in blind layers
            blind = [stated.is_blind(layer) for layer in range(vlm.n_layers)]
            assert (trace.k_per_layer.values[1:] == np.where(blind, 0, n)).all()
            continue
        assert (trace.k_per_layer.values == trace.k_per_layer.values[0]).all()
        assert (trace.kept.values == trace.kept.values[0]).all()
