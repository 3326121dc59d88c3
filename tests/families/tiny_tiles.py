"""Tiny models of the families that cut a picture into tiles."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import transformers as hf
from tiny_parts import PATCH, Tiny, text, tokenizer, tower

from visionpulse_analysis.models.processors import pil_class


def internvl(text_class: Any = hf.Qwen2Config, **extra: Any) -> Tiny:
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(marks, "<IMG_CONTEXT>\n")
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower(32)),
        text_config=text_class(**text(words, **extra)),
        image_token_id=words.context_image_token_id,
        image_seq_length=16,
    )
    pictures = pil_class("GotOcr2ImageProcessor")(size={"height": 32, "width": 32}, max_patches=6)
    processor = partial(hf.InternVLProcessor, image_seq_length=16)
    video = ("InternVLVideoProcessor", {"size": {"height": 32, "width": 32}})
    return Tiny(hf.InternVLForConditionalGeneration(config), words, pictures, processor, video)


def internvl2_5() -> Tiny:
    """As those of InternVL 2.5 whose InternLM became a Llama in the library's format."""
    return internvl(hf.LlamaConfig)


def internvl3_5() -> Tiny:
    return internvl(hf.Qwen3Config)


def internvl3_5_moe() -> Tiny:
    return internvl(hf.Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


def aya_vision() -> Tiny:
    marks = {
        "image_token": "<|IMG_PATCH|>", "start_token": "<|START_OF_IMG|>", "end_token": "<|END_OF_IMG|>",
        "image_mark": "<image>", "global_token": "TILE_GLOBAL", **{f"tile_{i}": f"TILE_{i}" for i in range(1, 7)},
    }  # fmt: skip
    words = tokenizer(marks, "<image>")
    layers = ["sliding_attention", "full_attention"] * 2
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(32, vision_use_head=False)),
        text_config=hf.Cohere2Config(**text(words, sliding_window=24, layer_types=layers)),
        image_token_index=words.image_token_id,
        downsample_factor=2,
    )
    pictures = pil_class("GotOcr2ImageProcessor")(size={"height": 32, "width": 32}, max_patches=6)
    processor = partial(hf.AyaVisionProcessor, patch_size=PATCH, img_size=32, downsample_factor=2)
    return Tiny(hf.AyaVisionForConditionalGeneration(config), words, pictures, processor)


PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def llava_next() -> Tiny:
    words = tokenizer({"image_token": "<image>"}, "<image>")
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**tower(32, projection_dim=32)),
        text_config=hf.MistralConfig(**text(words, sliding_window=None)),
        image_token_index=words.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    pictures = pil_class("LlavaNextImageProcessor")(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
    )
    processor = hf.LlavaNextProcessor(pictures, words, PATCH, "default", num_additional_image_tokens=1)
    return Tiny(hf.LlavaNextForConditionalGeneration(config), words, pictures, processor)


def llava_onevision() -> Tiny:
    """With two pixels of each tile unread, and grids large enough to be shrunk."""
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"}, "<image>")
    pinpoints = [[34 * rows, 34 * cols] for rows in range(1, 5) for cols in range(1, 5)]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(34, vision_use_head=False)),
        text_config=hf.Qwen2Config(**text(words)),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",
    )
    pictures = pil_class("LlavaOnevisionImageProcessor")(
        size={"height": 34, "width": 34}, image_grid_pinpoints=pinpoints
    )
    options = {"num_image_tokens": 64, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_4"}
    processor = partial(hf.LlavaOnevisionProcessor, **options)
    video = ("LlavaOnevisionVideoProcessor", {"size": {"height": 34, "width": 34}})
    return Tiny(hf.LlavaOnevisionForConditionalGeneration(config), words, pictures, processor, video)


def idefics(config_class: Any, vision_class: Any, model_class: Any, pictures: Any, processor: Any) -> Tiny:
    places = {f"row_{row}_col_{col}": f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)}
    marks = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>", "video_token": "<video>", **places,
    }  # fmt: skip
    words = tokenizer(marks, "<image>")
    config = config_class(
        vision_config=vision_class(**tower(32)),
        text_config=hf.LlamaConfig(**text(words)),
        image_token_id=words.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    pictures = pictures(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    return Tiny(model_class(config), words, pictures, partial(processor, image_seq_len=16))


def idefics3() -> Tiny:
    return idefics(
        hf.Idefics3Config, hf.Idefics3VisionConfig, hf.Idefics3ForConditionalGeneration,
        pil_class("Idefics3ImageProcessor"), hf.Idefics3Processor,
    )  # fmt: skip


def smolvlm() -> Tiny:
    tiny = idefics(
        hf.SmolVLMConfig, hf.SmolVLMVisionConfig, hf.SmolVLMForConditionalGeneration,
        pil_class("SmolVLMImageProcessor"), hf.SmolVLMProcessor,
    )  # fmt: skip
    video = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 32}}
    return replace(tiny, video=("SmolVLMVideoProcessor", video))
