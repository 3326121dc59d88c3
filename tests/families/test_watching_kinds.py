"""Language models of every kind under one picture tower: hybrids, sinks, caps, chunks, indexers."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_grids
import torch
import transformers as hf
from tiny_parts import text

import visionpulse_analysis as vpa
from visionpulse_analysis.models.families import attention_of
from visionpulse_analysis.models.loading import VLM

STEPS = 5
QUESTIONS = ("where is it ?", "how many ?")
KINDS = {
    "linear attention": ("Qwen3_5TextConfig", {
        "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }),
    "convolutions": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv", "full_attention"],
                                    "block_ff_dim": 64}),
    "sinks": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "capped logits": ("Gemma2Config", {"attn_logit_softcapping": 0.5, "sliding_window": 16}),
    "chunks": ("Llama4TextConfig", {
        "attention_chunk_size": 32, "num_local_experts": 2, "intermediate_size_mlp": 64, "no_rope_layers": [1, 1, 1, 0],
    }),
    "an indexer": ("MistralLarge4TextConfig", {
        "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "index_topk": 20,
        "index_head_dim": 16, "index_n_heads": 2,
    }),
}  # fmt: skip
RECORDED = {"linear attention": [1, 3], "convolutions": [1, 3]}


def build(kind):
    name, options = KINDS[kind]
    if not hasattr(hf, name):
        pytest.skip(f"transformers {hf.__version__} has no {name}")
    if kind in RECORDED and hf.__version__.startswith("5.4."):
        pytest.skip("this transformers makes no cache for a hybrid inside another model")
    torch.manual_seed(0)
    tiny = tiny_grids.llava()
    config = hf.LlavaConfig(
        vision_config=tiny.model.config.vision_config,
        text_config=getattr(hf, name)(**text(tiny.tokenizer, **options)),
        image_token_index=tiny.tokenizer.image_token_id,
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"text_config": attention_of(config)})
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
        elif name.endswith("sinks"):
            parameter.data += 1.0
    model.generation_config.eos_token_id = None
    return VLM("tiny", model, tiny.tokenizer, tiny.image_processor)


def rows_of_eager(vlm, prompts, inputs):
    """Tokens, and rows [prompt][step, layer, head, patch], of the library's own eager generate with its weights."""
    before = vlm.model.get_decoder().config._attn_implementation
    vlm.model.set_attn_implementation({"text_config": "eager"})
    out = vlm.model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    vlm.model.set_attn_implementation({"text_config": before})
    length = inputs["input_ids"].shape[1]
    found = []
    for row, prompt in enumerate(prompts):
        places = torch.from_numpy(prompt.grid.position.copy()) + length - len(prompt.ids)
        steps = []
        for number, layers in enumerate(out.attentions):
            rows = []
            for weights in (layer for layer in layers if layer is not None):
                newest = weights[row, :, -1]
                # Of a window only its own columns are there.
                newest = torch.nn.functional.pad(newest, (length + number - newest.shape[1], 0))
                rows.append(newest[:, places])
            steps.append(torch.stack(rows))
        found.append(torch.stack(steps).numpy())
    return out.sequences[:, length:], found


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_models_own_eager_function(kind, photos):
    vlm = build(kind)
    prompts = [vlm.prompt(photo, question) for photo, question in zip(photos, QUESTIONS, strict=False)]
    inputs = vlm.family.batch(prompts, padding=0)
    greedy = {"max_new_tokens": STEPS, "do_sample": False}
    tokens, rows = rows_of_eager(vlm, prompts, inputs)
    with torch.no_grad():
        logits = vlm.model(**inputs).logits
    plain = vlm.model.generate(**inputs, **greedy)
    with vpa.watch(vlm.model, vlm.tokenizer, heads="all") as w:
        assert torch.equal(vlm.model.generate(**inputs, **greedy), plain)
        with torch.no_grad():
            assert torch.equal(vlm.model(**inputs).logits, logits)
    assert torch.equal(plain[:, -STEPS:], tokens)
    for trace, expected in zip(w.traces, rows, strict=True):
        assert trace.layers == RECORDED.get(kind, [0, 1, 2, 3])
        assert ("without_attention" in trace.meta) == (kind in RECORDED)
        assert np.abs(trace.attention.values - expected).max() <= np.spacing(np.float16(expected.max())) / 2 + 1e-5
        assert np.abs(trace.mass.values - expected.sum(-1)).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_decode_records_and_prunes_them_as_watch_does(kind, photos):
    vlm = build(kind)
    pictures, questions = photos[:2], list(QUESTIONS)
    prompts = [vlm.prompt(photo, question) for photo, question in zip(pictures, questions, strict=True)]
    inputs = vlm.family.batch(prompts, padding=0)
    for pruner in (None, vpa.VisionPulse(budget=0.2)):
        refused = kind == "sinks" and pruner is not None
        try:
            with vpa.watch(vlm.model, vlm.tokenizer, pruner=pruner) as w:
                vlm.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
            decoded = vpa.decode(vlm, pictures, questions, max_new_tokens=STEPS, pruner=pruner)
        except ValueError as error:
            assert refused and "attention sinks" in str(error)
            with pytest.raises(ValueError, match="attention sinks"):
                vpa.decode(vlm, pictures, questions, max_new_tokens=STEPS, pruner=pruner)
            continue
        assert not refused
        for trace, other in zip(w.traces, decoded, strict=True):
            assert trace.tokens == other.tokens and trace.layers == other.layers
            assert np.abs(trace.mass.values - other.mass.values).max() < 1e-5
            assert np.abs(trace.logprobs - other.logprobs).max() < 1e-4
            if pruner is not None:
                assert np.array_equal(trace.kept.values, other.kept.values) and not trace.kept.values.all()
                assert np.array_equal(trace.k_per_layer.values, other.k_per_layer.values)


def test_layers_without_attention_are_not_chosen(photos):
    vlm = build("linear attention")
    inputs = vlm.family.batch([vlm.prompt(photos[0], QUESTIONS[0])], padding=0)
    assert vlm.attention_layers == [1, 3] and vlm.default_anchor == 1
    for act in (vpa.watch(vlm.model, layers=[0, 1]).__enter__,
                lambda: vpa.decode(vlm, photos[0], QUESTIONS[0], layers=[0, 1])):  # fmt: skip
        with pytest.raises(ValueError, match=r"layers \[0\].*no softmax attention.*\[1, 3\]"):
            act()
    pruner = vpa.VisionPulse(budget=0.2, anchor_layer=2)
    with (
        vpa.watch(vlm.model, pruner=pruner),
        pytest.raises(ValueError, match=r"layer 2, which has no softmax.*\[1, 3\]"),
    ):
        vlm.model.generate(**inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"layer 2, which has no softmax.*\[1, 3\]"):
        vpa.decode(vlm, photos[0], QUESTIONS[0], pruner=pruner)
    with vpa.watch(vlm.model, vlm.tokenizer, pruner=vpa.VisionPulse(budget=0.2)) as w:
        vlm.model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    trace = w.traces[0]
    assert trace.meta["without_attention"]["layers"] == [0, 2] and "hiding" in trace.meta["without_attention"]["note"]
    patches = len(trace.grid)
    assert trace.k_per_layer.values[1:].tolist() == [[patches, patches // 5, patches, patches // 5]] * 2
    with pytest.raises(ValueError, match=r"plain softmax[\s\S]*execution=.masked"):
        vpa.decode(build("capped logits"), photos[0], QUESTIONS[0], pruner=pruner, execution="gathered")
