"""Tiny models of the families that read a picture as one grid."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers as hf
from tiny_parts import PATCH, Tiny, text, tokenizer, tower
from transformers.utils.import_utils import is_torchvision_available

from visionpulse_analysis.models.processors import pil_class

GRID = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}


def qwen(config_class: Any, model_class: Any, vision: dict, **text_extra: Any) -> Tiny:
    marks = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
    }  # fmt: skip
    turn, clip = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    words = tokenizer(marks, turn, clip=clip)
    ids = {f"{name}_id": words.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH, "temporal_patch_size": 2, **vision}
    vision |= {"spatial_merge_size": 2}
    config = config_class(text_config=text(words, rope_parameters=rope, **text_extra), vision_config=vision, **ids)
    pictures = pil_class("Qwen2VLImageProcessor")(**GRID, size={"shortest_edge": 1024, "longest_edge": 16384})
    return Tiny(model_class(config), words, pictures, hf.Qwen3VLProcessor)


def with_video(tiny: Tiny, processor: Any, name: str, fewest: int, most: int) -> Tiny:
    """Videos through the library's ``processor``, its video half of that name; so many pixels at least and at most."""
    size = {"shortest_edge": fewest, "longest_edge": most}
    return replace(tiny, processor=processor, video=(name, {**GRID, "size": size}))


QWEN3 = {
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}


def qwen3_vl() -> Tiny:
    tiny = qwen(hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, QWEN3)
    return with_video(tiny, hf.Qwen3VLProcessor, "Qwen3VLVideoProcessor", 2048, 16384)


def qwen3_vl_moe() -> Tiny:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    tiny = qwen(hf.Qwen3VLMoeConfig, hf.Qwen3VLMoeForConditionalGeneration, QWEN3, **experts)
    return with_video(tiny, hf.Qwen3VLProcessor, "Qwen3VLVideoProcessor", 2048, 16384)


def qwen2_5_vl() -> Tiny:
    vision = {"intermediate_size": 64, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    tiny = qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, {**vision, "tokens_per_second": 4})
    return with_video(tiny, hf.Qwen2_5_VLProcessor, "Qwen2VLVideoProcessor", 1024, 4096)


def qwen2_vl() -> Tiny:
    tiny = qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, {"embed_dim": 32, "mlp_ratio": 2})
    return with_video(tiny, hf.Qwen2VLProcessor, "Qwen2VLVideoProcessor", 1024, 4096)


def llava() -> Tiny:
    words = tokenizer({"image_token": "<image>"}, "<image>", begins=False)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower(32, projection_dim=32)),
        text_config=hf.LlamaConfig(**text(words)),
        image_token_index=words.image_token_id,
    )
    pictures = pil_class("LlavaImageProcessor")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(pictures, words, PATCH, "default", num_additional_image_tokens=1)
    return Tiny(hf.LlavaForConditionalGeneration(config), words, pictures, processor)


def gemma3() -> Tiny:
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer(marks, "<start_of_image>")
    layers = ["sliding_attention", "full_attention"] * 2
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**tower(32)),
        text_config=hf.Gemma3TextConfig(**text(words, sliding_window=24, layer_types=layers, query_pre_attn_scalar=8)),
        mm_tokens_per_image=16,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    pictures = pil_class("Gemma3ImageProcessor")(size={"height": 32, "width": 32}, pan_and_scan_min_crop_size=16)
    processor = hf.Gemma3Processor(pictures, words, image_seq_length=16)
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero to begin with
    return Tiny(model, words, pictures, processor)


def vipllava() -> Tiny:
    words = tokenizer({"image_token": "<image>"}, "<image>")
    # transformers 5.4 has the name in the plural.
    layers: Any = {"vision_feature_layer": [-2, -1], "vision_feature_layers": [-2, -1]}
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower(32, projection_dim=32)),
        text_config=hf.LlamaConfig(**text(words)),
        image_token_index=words.image_token_id,
        **layers,
    )
    pictures = pil_class("CLIPImageProcessor")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(pictures, words, PATCH, "default", num_additional_image_tokens=1)
    return Tiny(hf.VipLlavaForConditionalGeneration(config), words, pictures, processor)


def llava_siglip() -> Tiny:
    """LLaVA with a tower that has no class token, whose patches leave two pixels of 34 unread."""
    words = tokenizer({"image_token": "<image>"}, "<image>")
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**tower(34)),
        text_config=hf.Qwen2Config(**text(words)),
        image_token_index=words.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    pictures = pil_class("SiglipImageProcessor")(size={"height": 34, "width": 34})
    processor = hf.LlavaProcessor(pictures, words, PATCH, "full")
    return Tiny(hf.LlavaForConditionalGeneration(config), words, pictures, processor)


def deepseek_vl() -> Tiny:
    words = tokenizer({"image_token": "<image_placeholder>"}, "<image_placeholder>")
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**tower(32, vision_use_head=False)),
        text_config=hf.LlamaConfig(**text(words)),
        image_token_id=words.image_token_id,
    )
    pictures = pil_class("DeepseekVLImageProcessor")(size={"height": 32, "width": 32})
    processor = hf.DeepseekVLProcessor(pictures, words, num_image_tokens=64)
    return Tiny(hf.DeepseekVLForConditionalGeneration(config), words, pictures, processor)


def paligemma() -> Tiny:
    words = tokenizer({"image_token": "<image>"}, "<image>")
    text_config = hf.GemmaConfig(**text(words))
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**tower(32, vision_use_head=False)),
        text_config=text_config,
        image_token_index=words.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    pictures = pil_class("SiglipImageProcessor")(size={"height": 32, "width": 32})
    pictures.image_seq_length = 64
    words.chat_template = None
    return Tiny(hf.PaliGemmaForConditionalGeneration(config), words, pictures, hf.PaliGemmaProcessor)


BREAKS = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}


def pixtral() -> Tiny:
    """Pixtral itself: a LLaVA model with Pixtral's tower."""
    words = tokenizer(BREAKS, "[IMG]")
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**tower(64)),
        text_config=hf.MistralConfig(**text(words, sliding_window=None)),
        image_token_index=words.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    pictures = pil_class("PixtralImageProcessor")(
        size={"longest_edge": 64}, patch_size={"height": PATCH, "width": PATCH}
    )
    processor = partial(hf.PixtralProcessor, patch_size=PATCH) if is_torchvision_available() else None
    return Tiny(hf.LlavaForConditionalGeneration(config), words, pictures, processor)


def mistral3() -> Tiny:
    words = tokenizer(BREAKS, "[IMG]")
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**tower(64)),
        text_config=hf.MistralConfig(**text(words, sliding_window=None)),
        image_token_index=words.image_token_id,
        spatial_merge_size=2,
    )
    pictures = pil_class("PixtralImageProcessor")(
        size={"longest_edge": 64}, patch_size={"height": PATCH, "width": PATCH}
    )
    options = {"patch_size": PATCH, "spatial_merge_size": 2}
    processor = partial(hf.PixtralProcessor, **options) if is_torchvision_available() else None
    return Tiny(hf.Mistral3ForConditionalGeneration(config), words, pictures, processor)


def glm(config_class: Any, model_class: Any, name: str = "Glm4v", **extra: Any) -> Tiny:
    marks = {
        "image_token": "<|image|>", "video_token": "<|video|>", "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>", "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }  # fmt: skip
    clip = "<|begin_of_video|><|video|><|end_of_video|>"
    words = tokenizer(marks, "<|begin_of_image|><|image|><|end_of_image|>", clip=clip)
    ids = {f"{name}_id": words.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH, "temporal_patch_size": 2, "image_size": 32,
        "out_hidden_size": 32, "intermediate_size": 64, "spatial_merge_size": 2,
    }  # fmt: skip
    config = config_class(text_config=text(words, rope_parameters=rope, **extra), vision_config=vision, **ids)
    size = {"shortest_edge": 1024, "longest_edge": 16384}
    options: Any = {**GRID, "size": size}
    processor = getattr(hf, f"{name}Processor")
    tiny = Tiny(model_class(config), words, pil_class(f"{name}ImageProcessor")(**options), processor)
    return with_video(tiny, processor, f"{name}VideoProcessor", 2048, 16384)


def glm4v() -> Tiny:
    return glm(hf.Glm4vConfig, hf.Glm4vForConditionalGeneration)


def glm46v() -> Tiny:
    return glm(hf.Glm46VConfig, hf.Glm46VForConditionalGeneration, "Glm46V")


def glm4v_moe() -> Tiny:
    experts = {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    }  # fmt: skip
    return glm(hf.Glm4vMoeConfig, hf.Glm4vMoeForConditionalGeneration, **experts)
