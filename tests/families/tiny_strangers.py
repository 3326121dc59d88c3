"""Tiny models of types of which the package knows nothing, with their real processors."""

from __future__ import annotations

import tiny_grids
import torch
import transformers as hf
from tiny_parts import Tiny, text, tokenizer, tower


def qwen3_5() -> Tiny:
    """Linear attention in every other layer; the processor states the grid, and has a video half."""
    hybrid = {
        "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip
    vision = {name: tiny_grids.QWEN3[name] for name in ("intermediate_size", "out_hidden_size")}
    vision |= {"num_position_embeddings": 64}
    return tiny_grids.qwen(hf.Qwen3_5Config, hf.Qwen3_5ForConditionalGeneration, vision, **hybrid)


def janus() -> Tiny:
    """The longer side is scaled to the tower's square, the rest of it padded."""
    words = tokenizer(
        {"image_token": "<image_placeholder>", "boi_token": "<boi>", "eoi_token": "<eoi>"}, "<image_placeholder>"
    )
    vision = {name: value for name, value in tower(32).items() if name != "intermediate_size"}
    config = hf.JanusConfig(
        text_config=hf.LlamaConfig(**text(words)).to_dict(),
        vision_config={**vision, "mlp_ratio": 2.0, "projection_dim": 32, "depth": 2, "num_image_tokens": 64},
        vq_config={"num_embeddings": 16, "embed_dim": 8, "latent_channels": 8, "base_channels": 32,
                   "channel_multiplier": [1, 1], "num_res_blocks": 1, "image_token_embed_dim": 32,
                   "projection_dim": 32},
        image_token_id=words.image_token_id,
    )  # fmt: skip
    pictures = hf.JanusImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.JanusProcessor(pictures, words, num_image_tokens=64)
    return Tiny(hf.JanusForConditionalGeneration(config), words, pictures, processor)


def ovis2() -> Tiny:
    """Tiles, rows and columns of them, and an overview, each behind a mark of its own."""
    marks = {"image_token": "<image>", **{f"{name.lower()}_token": f"<IMG_{name}>" for name in
             ("ATOM", "START", "GRID", "COL", "ROW", "END")}}  # fmt: skip
    words = tokenizer(marks, "<image>")
    indicators = [words.convert_tokens_to_ids(f"<IMG_{name}>") for name in ("START", "GRID", "COL", "ROW", "END")]
    vision = {**tower(32, hidden_stride=1), "vocab_size": 64, "num_visual_indicator_tokens": 5}
    config = hf.Ovis2Config(
        vision_config=vision, text_config=hf.Qwen2Config(**text(words)).to_dict(), hidden_size=32,
        vocab_size=len(words), image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=indicators,
    )  # fmt: skip
    pictures = hf.Ovis2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    processor = hf.Ovis2Processor(pictures, words, image_seq_length=64)
    return Tiny(hf.Ovis2ForConditionalGeneration(config), words, pictures, processor)


def idefics2() -> Tiny:
    """Learned queries, each of which reads the whole picture."""
    marks = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>",
             "end_token": "<end_of_utterance>"}  # fmt: skip
    words = tokenizer(marks, "<image>")
    perceiver = {"hidden_size": 32, "resampler_n_latents": 8, "resampler_depth": 1, "resampler_n_heads": 4,
                 "resampler_head_dim": 8, "num_key_value_heads": 2}  # fmt: skip
    config = hf.Idefics2Config(
        vision_config=tower(32), perceiver_config=perceiver, text_config=hf.MistralConfig(**text(words)).to_dict(),
        image_token_id=words.image_token_id,
    )  # fmt: skip
    pictures = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32}, do_image_splitting=False)
    processor = hf.Idefics2Processor(pictures, words, image_seq_len=8)
    return Tiny(hf.Idefics2ForConditionalGeneration(config), words, pictures, processor)


STRANGERS = {"qwen3_5": qwen3_5, "janus": janus, "ovis2": ovis2, "idefics2": idefics2}


def build(kind: str) -> Tiny:
    torch.manual_seed(0)
    tiny = STRANGERS[kind]()
    tiny.model.eval()
    tiny.model.generation_config.eos_token_id = None
    for name, parameter in tiny.model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    return tiny
