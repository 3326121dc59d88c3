"""The bundled model's architecture: a small Qwen3-VL, built from configuration alone."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from visionpulse_analysis.testbed.scenes import CELL, MAX_CELLS
from visionpulse_analysis.testbed.tokens import build_tokenizer, vocabulary

PATCH = 8  # pixels per patch side: a cell of the scene is 2 x 2 patches
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP = 8, 128, 4, 2, 32, 384
VISION_LAYERS, VISION_WIDTH, VISION_HEADS, VISION_MLP = 2, 64, 4, 128


def build_config() -> Qwen3VLConfig:
    """Configuration of the bundled model (8 layers of width 128, a 2-layer vision tower, one patch = one token)."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": ids["<|pad|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_MLP,
            "num_heads": VISION_HEADS,
            "patch_size": PATCH,
            "spatial_merge_size": 1,
            "temporal_patch_size": 1,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": (2 * CELL) ** 2 // 4,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """A freshly initialised bundled model; ``seed`` fixes its weights without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(build_config())
    end = model.config.text_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=model.config.text_config.pad_token_id
    )
    return model


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Image processor of the bundled model: patches of 8 pixels, 16 to 1,024 of them an image."""
    side = MAX_CELLS * CELL
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=1,
        size={"shortest_edge": (4 * PATCH) ** 2, "longest_edge": side**2},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_bundle(model: Qwen3VLForConditionalGeneration, folder: str | Path) -> None:
    """Write model, tokenizer and image processor in Hugging Face format, ready for ``load``."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
