"""Pruners in a real decode: masked equals gathered, everything kept equals dense, and the kept sets follow the rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eager import eager_run
from slow_pruners import slow_blocks, slow_tokens

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import KeepAll, LastStepOnly, PrefillOnce, Random, Uniform, VisionPulse
from visionpulse_analysis.testbed.scenes.tokens import build_tokenizer
from visionpulse_analysis.testbed.training.model import Size, build_image_processor, build_model

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?", "is the red star left of the blue cross ?"]
SIZES = [
    Size(layers=4, width=64, heads=4, kv_heads=4, head_dim=16, mlp=96),
    Size(layers=5, width=64, heads=6, kv_heads=2, head_dim=32, mlp=96),
    Size(layers=3, width=32, heads=2, kv_heads=1, head_dim=16, mlp=64),
]
PRUNERS = [
    VisionPulse.five_percent(),
    VisionPulse.ten_percent(0),
    VisionPulse(temperature=2.0, budget_max=0.9, reuse_previous=True),
    VisionPulse(budget=0.1, hysteresis=2.0),
    VisionPulse(granularity="block", block_size=16, budget_max=0.5),
    VisionPulse(1, granularity="block", block_size=8, budget=0.3, reuse_previous=True, hysteresis=1.0),
    Random(0.1),
    Uniform(0.1, 0),
    PrefillOnce(0.1),
    LastStepOnly(0.1, 2),
    KeepAll(),
]
EVERYTHING = [
    VisionPulse(budget=1.0),
    VisionPulse(budget=1.0, reuse_previous=True, hysteresis=1.0),
    VisionPulse(granularity="block", block_size=16, budget=1.0, reuse_previous=True),
    Random(1.0),
    Uniform(1.0),
    PrefillOnce(1.0, 0),
    LastStepOnly(1.0),
    KeepAll(),
]


def random_model(seed: int, size: Size) -> VLM:
    model = build_model(seed, size).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    model.generation_config.eos_token_id = -1  # never produced: every row takes every step
    return VLM(f"random-{seed}", model, build_tokenizer(), build_image_processor())


@pytest.fixture(scope="module", params=range(len(SIZES)), ids=lambda index: f"model{index}")
def model(request):
    return random_model(request.param, SIZES[request.param])


@pytest.fixture
def logits(monkeypatch):
    """The logits [row, word] of every forward that decoding makes, in order."""
    seen: list[torch.Tensor] = []

    def forward(self, *args, original=Batch.forward, **inputs):
        out = original(self, *args, **inputs)
        seen.append(out.clone())
        return out

    monkeypatch.setattr(Batch, "forward", forward)
    return seen


def decode(model, pictures, seen, **options):
    """Four rows of different lengths, the last one with two images. Returns the traces and all logits."""
    seen.clear()
    images = [*pictures, [pictures[0], pictures[1]]]
    traces = vpa.decode(model, images, [*QUESTIONS, QUESTIONS[0]], max_new_tokens=6, **options)
    return traces, torch.stack(seen)


@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
def test_masked_equals_gathered(model, pictures, logits, pruner):
    masked, expected = decode(model, pictures, logits, pruner=pruner, execution="masked")
    gathered, found = decode(model, pictures, logits, pruner=pruner, execution="gathered")
    assert (expected - found).abs().max() < 1e-5
    for a, b in zip(masked, gathered, strict=True):
        assert a.tokens == b.tokens and (a.meta["execution"], b.meta["execution"]) == ("masked", "gathered")
        assert np.array_equal(a.kept.values, b.kept.values) and np.array_equal(a.k.values, b.k.values)
        # Masses and budgets are shares, 0..1; a pruner's, at temperature 0.1, magnifies differences of logits tenfold.
        for name in ("mass", "budget", "pruner_mass"):
            assert np.allclose(getattr(a, name).values, getattr(b, name).values, rtol=0, atol=1e-5, equal_nan=True)
        assert a.kept.values[0].all() and a.k.values.tolist() == a.kept.values.sum(axis=1).tolist()
        assert np.isnan(a.pruner_mass.values[1:]).all() == (not isinstance(pruner, VisionPulse))
        assert not np.isnan(a.budget.values).any()


@pytest.mark.parametrize("pruner", [VisionPulse.five_percent(), PrefillOnce(0.1), LastStepOnly(0.1)], ids=repr)
def test_masked_equals_gathered_without_padding(vlm, pictures, logits, pruner):
    """One row alone: the model passes no mask at all."""
    runs = []
    for execution in ("masked", "gathered"):
        logits.clear()
        trace = vpa.decode(vlm, pictures[1], QUESTIONS[0], max_new_tokens=6, pruner=pruner, execution=execution)
        runs.append((torch.stack(logits), trace.kept.values))
    assert (runs[0][0] - runs[1][0]).abs().max() < 1e-5
    assert np.array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
def test_a_padded_batch_equals_its_rows(pictures, logits, pruner):
    model = random_model(1, SIZES[1])
    together, expected = decode(model, pictures, logits, pruner=pruner, seed=4)
    for row in range(3):
        logits.clear()
        alone = vpa.decode(model, pictures[row], QUESTIONS[row], max_new_tokens=6, pruner=pruner, seed=4 + row)
        assert np.array_equal(alone.kept.values, together[row].kept.values)
        assert (torch.cat(logits) - expected[:, row]).abs().max() < 1e-4


@pytest.mark.parametrize("execution", ["masked", "gathered"])
@pytest.mark.parametrize("pruner", EVERYTHING, ids=repr)
def test_a_whole_budget_equals_dense_bit_for_bit(model, pictures, logits, pruner, execution):
    dense, expected = decode(model, pictures, logits)
    whole, found = decode(model, pictures, logits, pruner=pruner, execution=execution)
    assert torch.equal(expected, found)
    for a, b in zip(dense, whole, strict=True):
        assert np.array_equal(a.attention.values, b.attention.values) and b.kept.values.all()


@pytest.mark.parametrize("pruner", [p for p in PRUNERS if p != KeepAll()], ids=repr)
def test_pruning_changes_the_steps_after_prefill_only(model, pictures, logits, pruner):
    _, dense = decode(model, pictures, logits)
    _, pruned = decode(model, pictures, logits, pruner=pruner)
    assert torch.equal(dense[0], pruned[0])
    assert (dense[1] - pruned[1]).abs().amax(dim=1).min() > 1e-4


@pytest.mark.parametrize(
    "pruner",
    [
        VisionPulse.five_percent(2),
        VisionPulse(3, temperature=1.0, budget_max=0.9),
        VisionPulse(1, budget=0.2, hysteresis=0.7),
        VisionPulse(2, granularity="block", block_size=16, temperature=1.0, budget_max=0.5),
    ],
    ids=repr,
)
def test_kept_sets_follow_the_rule_of_the_anchors_true_attention(vlm, pictures, pruner):
    """The layers below the anchor are dense, so one eager forward over the finished sequence shows what it saw."""
    for picture in pictures:
        trace = vpa.decode(vlm, picture, QUESTIONS[0], max_new_tokens=8, pruner=pruner)
        rows = eager_run(vlm, picture, trace)[0][:, pruner.anchor_layer].double().log()
        slow = slow_blocks if pruner.granularity == "block" else slow_tokens
        places, start = trace.grid.position, rows.shape[-1] - len(trace) + 1
        _, previous = slow(rows[0][:, :start].numpy(), places, pruner, set())
        for step in range(1, len(trace)):
            mass, kept = slow(rows[step][:, : start + step].numpy(), places, pruner, previous)
            assert set(np.flatnonzero(trace.kept.values[step]).tolist()) == kept
            assert trace.pruner_mass.values[step] == pytest.approx(mass, rel=1e-4, abs=1e-6)
            previous = kept


def test_the_anchor_of_the_block_variant_stays_dense(vlm, pictures):
    pruner = VisionPulse(3, granularity="block", block_size=16, budget=0.3)
    trace = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=6, pruner=pruner)
    dropped, rows = ~trace.kept.values[1:], trace.attention.values[1:].astype(np.float32)
    seen = (rows * dropped[:, None]).sum(axis=(0, 2))
    assert (seen[:4] > 0).all() and (seen[4:] == 0).all()


def test_reuse_hides_below_the_anchor_what_the_step_before_dropped(vlm, pictures):
    pruner = VisionPulse(4, budget=0.2, reuse_previous=True)
    trace = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=8, pruner=pruner)
    kept, seen = trace.kept.values, trace.attention.values > 0
    for step in range(1, len(trace)):
        assert not seen[step, 4:, ~kept[step]].any()
        assert seen[step, :4].any(axis=(0)).sum() <= 51  # 20 % of 256
        if step > 1:
            assert not seen[step, :4, ~kept[step - 1]].any()


def test_what_one_step_drops_a_later_one_may_show_again(vlm, pictures):
    trace = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=8, pruner=VisionPulse.five_percent())
    kept = trace.kept.values[1:]
    assert (kept[:-1] & ~kept[1:]).any() and (~kept[:-1] & kept[1:]).any()


def test_hysteresis_steadies_the_kept_set(vlm, pictures):
    turnover = []
    for hysteresis in (0.0, 1.0, 1e6):
        pruner = VisionPulse(budget=0.1, hysteresis=hysteresis)
        trace = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=8, pruner=pruner)
        turnover.append((trace.kept.values[1:-1] != trace.kept.values[2:]).sum())
    assert turnover[0] > turnover[1] > turnover[2] == 0


def test_prefill_once_equals_a_frozen_visionpulse_and_late_ones_lag(vlm, pictures):
    once = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=6, pruner=PrefillOnce(0.1))
    frozen = vpa.decode(
        vlm, pictures[2], QUESTIONS[0], max_new_tokens=6, pruner=VisionPulse(budget=0.1, hysteresis=1e6)
    )
    late = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=6, pruner=LastStepOnly(0.1))
    fresh = vpa.decode(vlm, pictures[2], QUESTIONS[0], max_new_tokens=6, pruner=VisionPulse(budget=0.1))
    assert np.array_equal(once.kept.values, frozen.kept.values) and once.tokens == frozen.tokens
    assert np.array_equal(once.kept.values[1], late.kept.values[1])
    assert not np.array_equal(late.kept.values[1], late.kept.values[2])
    if late.tokens[:2] == fresh.tokens[:2]:  # the same second query, then
        assert np.array_equal(late.kept.values[2], fresh.kept.values[1])
