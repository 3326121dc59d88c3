"""The sizes read off text configurations: the formula against a counted forward of each model, and the refused ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

import visionpulse_analysis as vpa
from visionpulse_analysis.metrics.flops import ModelShape, costs_of, count_costs

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
FEWER = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LATENT = {"q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
COUNTED = {
    "llama": FEWER,
    "mistral": FEWER,
    "qwen2": FEWER,
    "qwen3": {**FEWER, "head_dim": 32},
    "qwen3_moe": {**FEWER, **EXPERTS, "head_dim": 16},
    "gemma3_text": {**FEWER, "head_dim": 16},
    "cohere": FEWER,
    "phi": FEWER,
    "mixtral": {**FEWER, **LOCAL},
    "glm4_moe": {**FEWER, **ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "granitemoeshared": {**FEWER, **LOCAL, "shared_intermediate_size": 0},
    "olmo2": FEWER,
    "jais2": FEWER,
    "nanochat": FEWER,
    "granite": FEWER,
    "arcee": FEWER,
    "apertus": {**FEWER, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "starcoder2": FEWER,
    "gpt_neox": {**SIZES, "intermediate_size": 96},
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt2": {**SIZES, "n_inner": 96},
}
REFUSED = {
    "deepseek_v3": ({**FEWER, **ROUTED, **LATENT, "kv_lora_rank": 16}, "kv_lora_rank"),
    "llama4_text": ({**FEWER, **LOCAL, "intermediate_size_mlp": 96}, "intermediate_size_mlp"),
    "ernie4_5_moe": ({**FEWER, "moe_num_experts": 4, "moe_k": 2}, "moe_num_experts"),
    "hunyuan_v1_moe": ({**FEWER, "head_dim": 16, "num_experts": 4, "moe_topk": 2}, "moe_topk"),
    "granitemoeshared": ({**FEWER, **LOCAL, "shared_intermediate_size": 48}, "shared_intermediate_size"),
    "qwen3_next": (FEWER, "linear_attention"),
    "diffllama": (FEWER, "lambda_std_dev"),
    "doge": (FEWER, "keep_window_size"),
    "gpt_bigcode": (SIZES, "multi_query"),
    "falcon": (SIZES, "multi_query"),
    "lfm2": ({**FEWER, "layer_types": ["conv", "full_attention"]}, "conv"),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_the_formula_is_one_counted_forward(kind):
    config = AutoConfig.for_model(kind, **COUNTED[kind])
    # Eager attention and experts are plain matrix products, which the counter knows on every device.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        states = model.base_model(torch.arange(20)[None] + 5, use_cache=False)[0]
        model.get_output_embeddings()(states[:, -1:])
    shape = ModelShape.of(config)
    costs = count_costs(shape, np.zeros((1, shape.layers)), text=20, patches=0)
    assert costs.flops[0] == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", REFUSED)
def test_layers_that_the_formula_does_not_know_are_refused(kind):
    sizes, named = REFUSED[kind]
    with pytest.raises(ValueError, match=f"has .*{named}.* give a ModelShape by hand"):
        ModelShape.of(AutoConfig.for_model(kind, **sizes))


def test_a_model_that_cannot_be_counted_decodes_and_its_trace_says_why(vlm, pictures, monkeypatch):
    monkeypatch.setattr(vlm.model.config.get_text_config(), "kv_lora_rank", 16, raising=False)
    trace = vpa.decode(vlm, pictures[0], "how many blue shapes ?", max_new_tokens=2, layers="none")
    assert len(trace) == 2
    with pytest.raises(ValueError, match=r"costs of this trace are not known: .* has kv_lora_rank"):
        costs_of(trace)
