"""Recorded decoding: what is recorded is what the model used, and recording changes nothing."""

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis import attention
from visionpulse_analysis.pruners import KeepAll, Random, VisionPulse
from visionpulse_analysis.pruners.view import newest_logits
from visionpulse_analysis.recording import StepAttention
from visionpulse_analysis.sampling import Sample

QUESTION = "where is the red circle ?"
QUESTIONS = [QUESTION, "how many blue shapes ?", "is the red star left of the blue cross ?"]


def eager_rows(vlm, picture, trace):
    """Attention of every step from one eager forward over the whole sequence: [step, layer, head, patch]."""
    prompt = vlm.prompt(picture, trace.question)
    whole = prompt.answered(torch.from_numpy(trace.token_ids[:-1].copy()))
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.inference_mode():
            out = vlm.model(**vlm.family.batch([whole], padding=0), output_attentions=True)
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
    first = len(prompt.ids) - 1
    rows = torch.stack(out.attentions, dim=1)[0]  # [layer, head, query, key]
    return rows[:, :, first:, :][..., prompt.grid.position.copy()].permute(2, 0, 1, 3).numpy(), out.logits[0, first:]


def test_rows_equal_those_of_eager_attention(vlm, pictures):
    for picture in pictures:
        trace = vpa.decode(vlm, picture, QUESTION, heads="all", max_new_tokens=12)
        rows, logits = eager_rows(vlm, picture, trace)
        # float16 storage: half a unit in the last place of the largest value; the masses are kept in float32.
        assert np.abs(trace.attention.values - rows).max() <= np.spacing(np.float16(rows.max())) / 2 + 1e-6
        assert np.abs(trace.mass.values - rows.sum(-1)).max() < 1e-6
        assert trace.token_ids.tolist() == logits.argmax(-1).tolist()


def test_head_mean_is_the_mean_of_the_heads(vlm, pictures):
    mean = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6)
    every = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6, heads="all")
    two = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6, heads=[3, 1], layers=[5, 2])
    assert np.abs(mean.mass.values - every.mass.values.mean(axis=2)).max() < 1e-6
    assert two.layers == [2, 5] and two.heads == [3, 1]
    assert np.array_equal(two.attention.values, every.attention.values[:, [2, 5]][:, :, [3, 1]])


def test_recorded_row_times_value_is_the_output_of_the_kernel(vlm, pictures):
    errors = []

    class Checked(StepAttention):
        def __call__(self, module, query, key, value, mask, *, scaling, **options):
            output, weights = super().__call__(module, query, key, value, mask, scaling=scaling, **options)
            row = torch.softmax(newest_logits(query, key, mask, scaling), -1)
            expanded = value.repeat_interleave(module.num_key_value_groups, dim=1)
            errors.append((torch.einsum("bhk,bhkd->bhd", row, expanded) - output[:, -1]).abs().max().item())
            return output, weights

    from visionpulse_analysis import decoding

    original, decoding.StepAttention = decoding.StepAttention, Checked
    try:
        vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=6)
    finally:
        decoding.StepAttention = original
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


def test_a_batch_gives_the_traces_of_its_rows(vlm, pictures):
    sample = Sample(temperature=1.5)
    together = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=25, sample=sample, seed=[3, 4, 5])
    for trace, picture, question, seed in zip(together, pictures, QUESTIONS, (3, 4, 5), strict=True):
        alone = vpa.decode(vlm, picture, question, max_new_tokens=25, sample=sample, seed=seed)
        assert trace.tokens == alone.tokens
        assert trace.grid.equals(alone.grid)
        assert np.abs(trace.mass.values - alone.mass.values).max() < 1e-5
        gap = np.abs(trace.attention.values.astype(np.float32) - alone.attention.values)
        assert gap.max() < 1e-3
        assert np.abs(trace.logprobs - alone.logprobs).max() < 1e-4


def test_rows_that_end_early_do_not_disturb_the_others(vlm, pictures, monkeypatch):
    from visionpulse_analysis import decoding

    free = vpa.decode(vlm, [pictures[0]] * 4, [*QUESTIONS, QUESTION], max_new_tokens=12, seed=[0] * 4)
    stop = {free[0].token_ids[2].item()}
    monkeypatch.setattr(decoding, "end_ids", lambda vlm: stop)
    ended = vpa.decode(vlm, [pictures[0]] * 4, [*QUESTIONS, QUESTION], max_new_tokens=12, seed=[0] * 4)
    assert ended[0].meta["finished"] and len(ended[0]) <= 3
    for a, b in zip(free, ended, strict=True):
        assert b.tokens == a.tokens[: len(b)]
        assert b.meta["finished"] == (b.token_ids[-1].item() in stop)
        assert np.abs(b.mass.values - a.mass.values[: len(b)]).max() < 1e-5


def test_several_images_in_one_question(vlm, pictures):
    trace = vpa.decode(vlm, [pictures[0], pictures[1]], QUESTION, max_new_tokens=4)
    assert trace.grid.n_images == 2 and len(trace.grid) == 64 + 144
    assert [image.shape for image in trace.images] == [pictures[0].shape, pictures[1].shape]
    swapped = vpa.decode(vlm, [pictures[1], pictures[0]], QUESTION, max_new_tokens=4)
    assert not np.array_equal(trace.logprobs, swapped.logprobs)


def test_everything_is_restored(vlm, pictures):
    before = vlm.model.config.text_config._attn_implementation
    with pytest.raises(ValueError, match="anchor layer 9"):
        vpa.decode(vlm, pictures[0], QUESTION, pruner=VisionPulse(anchor_layer=9))
    vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=2)
    assert vlm.model.config.text_config._attn_implementation == before == "sdpa"
    assert attention.active_routes(vlm.model) == 0


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


class TestStreaming:
    def test_a_streamed_trace_equals_the_returned_one(self, vlm, pictures, tmp_path):
        store = vpa.TraceStore(tmp_path / "store", mode="a")
        plain = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=6, pruner=VisionPulse())
        streamed = vpa.decode(
            vlm, pictures, QUESTIONS, max_new_tokens=6, pruner=VisionPulse(), store=store, ids=["a", "b", "c"]
        )
        for name, a, b in zip("abc", plain, streamed, strict=True):
            assert a.data_hash == b.data_hash == store[name].data_hash
            assert store[name].meta["complete"] and store[name].meta["id"] == name

    def test_an_interrupted_run_leaves_its_steps_and_the_model_as_it_was(self, vlm, pictures, tmp_path, monkeypatch):
        from visionpulse_analysis import decoding

        full = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6)
        calls = []

        def interrupted(self, *args, original=decoding._Run._forward, **inputs):
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return original(self, *args, **inputs)

        monkeypatch.setattr(decoding._Run, "_forward", interrupted)
        store = vpa.TraceStore(tmp_path / "store", mode="a")
        with pytest.raises(KeyboardInterrupt):
            vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=6, store=store, ids="cut")
        left = store["cut"]
        assert left.meta["complete"] is False
        assert left.tokens == full.tokens[:4]
        assert np.array_equal(left.attention.values, full.attention.values[:4])
        assert attention.active_routes(vlm.model) == 0

    def test_a_store_needs_ids(self, vlm, pictures, tmp_path):
        with pytest.raises(ValueError, match="needs ids"):
            vpa.decode(vlm, pictures[0], QUESTION, store=vpa.TraceStore(tmp_path / "s", mode="a"))


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"question": "  "}, "question is empty"),
            ({"question": "what <|image_pad|> ?"}, "image placeholder"),
            ({"layers": 8}, r"layers \[8\]: expected different indices from 0 to 7"),
            ({"layers": [1, 1]}, "different indices"),
            ({"layers": "some"}, "layers must be"),
            ({"heads": [4]}, "indices from 0 to 3"),
            ({"heads": "max"}, "heads must be"),
            ({"max_new_tokens": 0}, "at least 1"),
            ({"execution": "magic"}, "'masked' or 'gathered'"),
            ({"question": []}, "no question"),
            (
                {"question": ["a", "b"], "image": [np.zeros((64, 64, 3), np.uint8)]},
                "2 questions need as many images",
            ),
            ({"question": ["a", "b"], "seed": [1]}, "2 questions need as many seeds"),
            ({"image": np.zeros((4, 4), np.uint8)}, "uint8"),
            ({"image": 3}, "got int"),
        ],
    )
    def test_one_clear_error(self, vlm, pictures, change, message):
        call = {"image": pictures[0], "question": QUESTION, "max_new_tokens": 2, **change}
        with pytest.raises(ValueError, match=message):
            vpa.decode(vlm, call.pop("image"), call.pop("question"), **call)

    def test_one_token(self, vlm, pictures):
        trace = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=1)
        assert len(trace) == 1 and not trace.meta["finished"]

    def test_nan_logits_stop_with_an_error(self, vlm, pictures, monkeypatch):
        head = vlm.model.lm_head.weight
        original = head.data.clone()
        try:
            head.data[:] = float("nan")
            with pytest.raises(FloatingPointError, match="NaN"):
                vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=2)
        finally:
            head.data = original
