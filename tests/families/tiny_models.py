"""A tiny random model of each family, built from its own configuration, with its real processor.

The tokenizer knows every byte and the family's marks, nothing else: two prompts that differ in one character have
different ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PATCH = 4  # pixels along one side of a patch of the vision tower
MARKS = ("<pad>", "<bos>", "<end>")


@dataclass
class Tiny:
    """A model with what turns pictures and text into its inputs.

    processor : the library's, which does both at once; a class where its video half needs torchvision.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    processor: Any

    def save(self, folder) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def tokenizer(marks: dict[str, str], turn: str) -> Any:
    """Bytes, the family's marks by name, and a chat template: ``turn`` is what it writes for one picture."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*MARKS, *dict.fromkeys(marks.values()), *letters]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}<bos>{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}" + turn + "{% elif part.type == 'video' %}<video>"
        "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        extra_special_tokens=marks,
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def text(words: Any, **extra: Any) -> Any:
    return {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **extra,
    }  # fmt: skip


def tower(image_size: int, **extra: Any) -> Any:
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": PATCH, "image_size": image_size, **extra,
    }  # fmt: skip


def qwen(config_class: Any, model_class: Any, vision: dict, **text_extra: Any) -> Tiny:
    marks = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
    }  # fmt: skip
    words = tokenizer(marks, "<|vision_start|><|image_pad|><|vision_end|>")
    ids = {f"{name}_id": words.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH, "temporal_patch_size": 2, **vision}
    vision |= {"spatial_merge_size": 2}
    config = config_class(text_config=text(words, rope_parameters=rope, **text_extra), vision_config=vision, **ids)
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 1024, "longest_edge": 16384}
    )
    return Tiny(model_class(config), words, pictures, hf.Qwen3VLProcessor)


QWEN3 = {
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}


def qwen3_vl() -> Tiny:
    return qwen(hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, QWEN3)


def qwen3_vl_moe() -> Tiny:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    return qwen(hf.Qwen3VLMoeConfig, hf.Qwen3VLMoeForConditionalGeneration, QWEN3, **experts)


def qwen2_5_vl() -> Tiny:
    vision = {"intermediate_size": 64, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    return qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, vision)


def qwen2_vl() -> Tiny:
    return qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, {"embed_dim": 32, "mlp_ratio": 2})


def llava() -> Tiny:
    words = tokenizer({"image_token": "<image>"}, "<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower(32, projection_dim=32)),
        text_config=hf.LlamaConfig(**text(words)),
        image_token_index=words.image_token_id,
    )
    pictures = hf.LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(pictures, words, PATCH, "default", num_additional_image_tokens=1)
    return Tiny(hf.LlavaForConditionalGeneration(config), words, pictures, processor)


def internvl() -> Tiny:
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(marks, "<IMG_CONTEXT>\n")
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower(32)),
        text_config=hf.Qwen2Config(**text(words)),
        image_token_id=words.context_image_token_id,
        image_seq_length=16,
    )
    pictures = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=6)
    processor = partial(hf.InternVLProcessor, image_seq_length=16)
    return Tiny(hf.InternVLForConditionalGeneration(config), words, pictures, processor)


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
    pictures = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, pan_and_scan_min_crop_size=16)
    processor = hf.Gemma3Processor(pictures, words, image_seq_length=16)
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero to begin with
    return Tiny(model, words, pictures, processor)


BUILDERS = {build.__name__: build for build in (qwen3_vl, qwen3_vl_moe, qwen2_5_vl, qwen2_vl, llava, internvl, gemma3)}


def build(family: str) -> Tiny:
    """The tiny model of a family, its weights large enough that attention is not flat."""
    torch.manual_seed(0)
    tiny = BUILDERS[family]()
    for name, parameter in tiny.model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    return tiny
