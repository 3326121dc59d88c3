"""The bundled model's architecture: a small Qwen3-VL, built from configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from visionpulse_analysis.testbed.scenes.scene import MAX_CELLS
from visionpulse_analysis.testbed.scenes.tokens import SYSTEM_PROMPT, build_tokenizer, vocabulary
from visionpulse_analysis.testbed.training.packing import PATCH


@dataclass(frozen=True)
class Size:
    """Dimensions of the language part, and of the vision tower."""

    layers: int = 8
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 384
    vision_layers: int = 2
    vision_width: int = 64
    vision_heads: int = 4
    vision_mlp: int = 128


BUNDLED = Size()


def build_config(size: Size = BUNDLED, words: Sequence[str] | None = None) -> Qwen3VLConfig:
    """Configuration of a small Qwen3-VL over ``words``, by default those of scenes; one patch is one token."""
    ids = {word: index for index, word in enumerate(vocabulary() if words is None else words)}
    # Frequencies are split over time, row and column as in the large models (24, 20, 20 of 64).
    spatial = size.head_dim // 2 * 5 // 16
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": size.width,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.head_dim,
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [size.head_dim // 2 - 2 * spatial, spatial, spatial],
                "mrope_interleaved": True,
            },
            "pad_token_id": ids["<|pad|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp,
            "num_heads": size.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": 1,
            "temporal_patch_size": 1,
            "out_hidden_size": size.width,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": list(range(size.vision_layers)),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(
    seed: int = 0, size: Size = BUNDLED, words: Sequence[str] | None = None
) -> Qwen3VLForConditionalGeneration:
    """A freshly initialised model; ``seed`` fixes its weights without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(build_config(size, words))
    text = model.config.get_text_config()
    model.generation_config = GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)
    return model


def build_image_processor(max_patches: int = (2 * MAX_CELLS) ** 2) -> Qwen2VLImageProcessorPil:
    """Image processor of the bundled model: patches of 8 pixels, 16 to ``max_patches`` of them an image."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=1,
        size={"shortest_edge": (4 * PATCH) ** 2, "longest_edge": max_patches * PATCH**2},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_bundle(
    model: Qwen3VLForConditionalGeneration,
    folder: str | Path,
    words: Sequence[str] | None = None,
    system_prompt: str = SYSTEM_PROMPT,
    stored: torch.dtype = torch.float32,
) -> None:
    """Write model, tokenizer (of ``words``, by default those of scenes) and image processor, ready for ``load``.

    The weights are stored as ``stored`` and loaded as the configuration says, in the dtype of ``model``: a CPU without
    bfloat16 units would be slow in it.
    """
    model.save_pretrained(folder, state_dict={name: value.to(stored) for name, value in model.state_dict().items()})
    build_tokenizer(words, system_prompt).save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
