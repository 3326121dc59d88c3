"""Recorded decoding: what is recorded is what the model used, and recording changes nothing."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from eager import eager_run

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.decoding import Batch, run
from visionpulse_analysis.pruners import KeepAll, Random, VisionPulse
from visionpulse_analysis.pruners.view import newest_logits

QUESTION = "where is the red circle ?"
QUESTIONS = [QUESTION, "how many blue shapes ?", "is the red star left of the blue cross ?"]


def test_rows_equal_those_of_eager_attention(vlm, pictures):
    for picture in pictures:
        trace = vpa.decode(vlm, picture, QUESTION, heads="all", max_new_tokens=12)
        attention, logits = eager_run(vlm, picture, trace)
        rows = attention[..., trace.grid.position.copy()].numpy()
        # float16 storage: half a unit in the last place of the largest value; the masses are kept in float32.
        assert np.abs(trace.attention.values - rows).max() <= np.spacing(np.float16(rows.max())) / 2 + 1e-6
        assert np.abs(trace.mass.values - rows.sum(-1)).max() < 1e-6
        assert trace.token_ids.tolist() == logits.argmax(-1).tolist()
        expected = torch.log_softmax(logits, dim=-1).amax(dim=-1).numpy()
        assert np.abs(trace.logprobs - expected).max() < 1e-4


def test_head_mean_is_the_mean_of_the_heads(vlm, pictures):
    mean = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6)
    every = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6, heads="all")
    two = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6, heads=[3, 1], layers=[5, 2])
    assert np.abs(mean.mass.values - every.mass.values.mean(axis=2)).max() < 1e-6
    assert two.layers == [2, 5] and two.heads == [3, 1]
    assert np.array_equal(two.attention.values, every.attention.values[:, [2, 5]][:, :, [3, 1]])


def test_recorded_row_times_value_is_the_output_of_the_kernel(vlm, pictures, monkeypatch):
    errors = []

    def checked(self, call, original=Batch.attend):
        output, weights = original(self, call)
        row = torch.softmax(newest_logits(call.query, call.key, call.mask, call.scaling), -1)
        expanded = call.value.repeat_interleave(call.module.num_key_value_groups, dim=1)
        errors.append((torch.einsum("bhk,bhkd->bhd", row, expanded) - output[:, -1]).abs().max().item())
        return output, weights

    monkeypatch.setattr(Batch, "attend", checked)
    vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=6)
    assert len(errors) == 6 * vlm.n_layers
    assert max(errors) < 1e-5


@pytest.mark.parametrize("layers", ["all", "anchor", 0, [1, 7]])
def test_recording_changes_no_logit(vlm, pictures, layers):
    plain = vpa.decode(vlm, pictures, QUESTIONS, layers="none", max_new_tokens=10)
    recorded = vpa.decode(vlm, pictures, QUESTIONS, layers=layers, heads="all", max_new_tokens=10)
    for a, b in zip(plain, recorded, strict=True):
        assert a.tokens == b.tokens
        assert np.array_equal(a.logprobs, b.logprobs)
        assert a.attention.shape[1] == 0


def test_tokens_are_those_of_generate(vlm, pictures):
    prompt = vlm.prompt(pictures[1], QUESTION)
    expected = vlm.model.generate(**vlm.family.batch([prompt], padding=0), max_new_tokens=20, do_sample=False)[
        0, len(prompt.ids) :
    ]
    trace = vpa.decode(vlm, pictures[1], QUESTION, max_new_tokens=20)
    assert trace.token_ids.tolist() == expected.tolist()


def test_everything_is_restored(vlm, pictures):
    before = vlm.model.config.text_config._attn_implementation
    with pytest.raises(ValueError, match="anchor layer 9"):
        vpa.decode(vlm, pictures[0], QUESTION, pruner=VisionPulse(anchor_layer=9))
    vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=2)
    assert vlm.model.config.text_config._attn_implementation == before == "sdpa"
    assert attention.active_interceptors(vlm.model) == 0


def test_a_layer_that_does_not_report_is_an_error(vlm, pictures, monkeypatch):
    """A model whose attention does not come by would otherwise leave rows of an earlier step, or none."""
    monkeypatch.setattr(run, "intercept", lambda *given: nullcontext())
    with pytest.raises(RuntimeError, match=r"layers \[2, 5\] did not report"):
        vpa.decode(vlm, pictures[0], QUESTION, layers=[2, 5], max_new_tokens=2)


def test_the_second_decode_equals_the_first(vlm, pictures):
    first = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=8)
    vpa.decode(vlm, pictures[2], QUESTIONS[1], max_new_tokens=8)
    assert vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=8).data_hash == first.data_hash


class TestPruned:
    @pytest.mark.parametrize("execution", ["masked", "gathered"])
    def test_keeping_everything_equals_dense_bit_for_bit(self, vlm, pictures, execution):
        dense = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=8)
        kept = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=8, pruner=KeepAll(), execution=execution)
        for a, b in zip(dense, kept, strict=True):
            assert np.array_equal(a.logprobs, b.logprobs) and a.tokens == b.tokens
            assert np.array_equal(a.attention.values, b.attention.values)
            assert b.kept.values.all()

    @pytest.mark.parametrize("pruner", [VisionPulse(), VisionPulse.ten_percent(2), Random(0.2, 1)], ids=repr)
    def test_masked_equals_gathered(self, vlm, pictures, pruner):
        results = [
            vpa.decode(
                vlm,
                [*pictures, [pictures[0], pictures[1]]],
                [*QUESTIONS, QUESTION],
                max_new_tokens=12,
                pruner=pruner,
                execution=execution,
            )
            for execution in ("masked", "gathered")
        ]
        for masked, gathered in zip(*results, strict=True):
            assert masked.tokens == gathered.tokens
            assert np.abs(masked.logprobs - gathered.logprobs).max() < 1e-5
            assert np.array_equal(masked.kept.values, gathered.kept.values)
            assert np.abs(masked.mass.values - gathered.mass.values).max() < 1e-5

    def test_dropped_patches_get_exactly_zero_from_the_anchor_on(self, vlm, pictures):
        trace = vpa.decode(vlm, pictures[2], QUESTION, max_new_tokens=10, pruner=VisionPulse(anchor_layer=4))
        kept, rows = trace.kept.values, trace.attention.values
        assert kept[0].all() and trace.k.values[0] == 256
        assert not kept[1:].all(axis=1).any()
        assert (rows[1:, 4:] * ~kept[1:, None, :] == 0).all()
        assert (rows[1:, :4] * ~kept[1:, None, :] > 0).any()
        assert np.array_equal(trace.k.values, kept.sum(axis=1))
        expected = np.maximum(1, np.floor(trace.budget.values[1:].astype(np.float64) * 256 + 1e-4))
        assert np.array_equal(trace.k.values[1:], expected)

    def test_rows_of_a_batch_choose_for_themselves(self, vlm, pictures):
        pruner = VisionPulse.ten_percent()
        together = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=10, pruner=pruner)
        for trace, picture, question in zip(together, pictures, QUESTIONS, strict=True):
            alone = vpa.decode(vlm, picture, question, max_new_tokens=10, pruner=pruner)
            assert trace.tokens == alone.tokens
            assert np.array_equal(trace.kept.values, alone.kept.values)
