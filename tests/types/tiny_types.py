"""A tiny random model of each type of the library's image-text-to-text mapping, and what stands for its processor.

What `shrinking` makes of a type's default configuration is changed here only where sizes must agree with one another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from inspect import signature
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pictures as of
import torch
import transformers
from shrinking import MARKS, tiny_config
from timm_tower import stand_in
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

CLASSES: dict[str, str] = {
    kind: name if isinstance(name, str) else name[0]
    for kind, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
}
UNMADE = ("apertus1p5", "inkling2_loop")  # types of which no tiny model is made here yet
IMAGE_IDS = ("image_patch_id", "image_token_id", "image_token_index", "video_token_index")
TEXT = "text_config."
LATENTS = 8  # image tokens of types whose processor writes any words in their place


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    given = {"rope_type": "default", "rope_theta": 1e4, **more}
    return given | ({"mrope_section": list(sections)} if sections else {})


def _each(kinds: tuple[str, ...], given: Any) -> dict[str, Any]:
    """The same for several types."""
    return {kind: given for kind in kinds}  # noqa: C420


SMALL_ROPE = {f"{TEXT}rope_parameters": _rope(4, 2, 2), "vision_start_token_id": MARKS + 8}
PINPOINTS = {"image_grid_pinpoints": [[16, 32], [32, 16]]}
CODES = {
    "vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1, 1], "vq_config.num_embeddings": 16,
    "vq_config.codebook_size": 16, "vq_config.resolution": 16, "vq_config.latent_channels": 32,
    "vq_config.embed_dim": 32, "vq_config.hidden_size": 32,
}  # fmt: skip
LETTERS = "ABCDEFGHIJ"

# What sizes must be for a type's parts to fit together, by the path of the field.
CHANGES: dict[str, dict[str, Any]] = {
    **_each(("glm46v", "glm4v", "glm_ocr", "glmga", "qwen2_vl", "qwen2_5_vl",
                     "qwen2_5_omni_thinker"), SMALL_ROPE),
    **_each(("llava_next", "llava_next_video", "llava_onevision"), PINPOINTS),
    **_each(("lighton_ocr", "mistral3"), {"vision_config.image_size": 64}),
    **_each(("got_ocr2", "pp_chart2table"), {"vision_config.image_size": 64}),
    **_each(("gemma3", "shieldgemma2"), {"mm_tokens_per_image": 4}),
    "aria": {"projector_patch_to_query_dict": {16: 8}, "vision_config.image_size": 16},
    "chameleon": CODES | {"vocabulary_map": {"<image>": MARKS} | {
        f"IMGIMG{LETTERS[code // 10]}{LETTERS[code % 10]}Z": 64 + code for code in range(16)}},
    "cohere_compass": {f"{TEXT}rope_parameters": {"full_attention": _rope(6, 5, 5)}},
    "deepseek_ocr2": {f"{TEXT}num_experts_per_tok": 2,
                      f"{TEXT}mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                      "vision_config.sam_config.image_size": 64,
                      "vision_config.sam_config.downsample_channels": [64, 64]},
    "deepseek_vl_hybrid": {"high_res_vision_config.image_size": 64, "high_res_vision_config.global_attn_indexes": [1]},
    "diffusion_gemma": {f"{TEXT}num_experts": 4, f"{TEXT}top_k_experts": 2, f"{TEXT}moe_intermediate_size": 32},
    "dots3_note": {f"{TEXT}num_key_value_heads": 4, f"{TEXT}per_layer_config": {},
                   "audio_config.adapter_input_size": 64,
                   "vision_config.per_layer_config": {}},
    "emu3": CODES | {"vocabulary_map": {"<image>": MARKS, "<|extra_200|>": MARKS + 1} | {
        f"<|visual token {code:06d}|>": 64 + code for code in range(16)}},
    "ernie4_5_vl_moe": {f"{TEXT}rope_parameters": _rope(3, 3, 2)},
    "fast_vlm": {"vision_config.hidden_size": 64},
    "florence2": {"vision_config.embed_dim": [64] * 4, "vision_config.depths": [1] * 4,
                  "vision_config.num_heads": [4] * 4, "vision_config.num_groups": [4] * 4,
                  "vision_config.window_size": 4},
    "gemma3n": {f"{TEXT}vocab_size_per_layer_input": 128, "audio_config.conf_num_hidden_layers": 1,
                "vision_soft_tokens_per_image": 16, f"{TEXT}activation_sparsity_pattern": [0.0] * 4,
                f"{TEXT}intermediate_size": 64},
    "gemma4": {f"{TEXT}vocab_size_per_layer_input": 128, "vision_config.position_embedding_size": 64,
               "vision_config.pooling_kernel_size": 2},
    "gemma4_unified": {"vision_config.position_embedding_size": 64},
    "glm4v_moe": {f"{TEXT}rope_parameters": _rope(2, 1, 1)},
    "glm5_next": {f"{TEXT}num_key_value_heads": 4, f"{TEXT}index_kpool": 4},
    "kosmos-2": {"latent_query_num": LATENTS},
    "pix2struct": {"vision_config.patch_embed_hidden_size": 48, "vision_config.seq_len": 128},
    "vision-encoder-decoder": {"decoder.is_decoder": True, "decoder.add_cross_attention": True},
    "kosmos-2.5": {"vision_config.patch_embed_hidden_size": 48, "latent_query_num": LATENTS},
    "mllama": {f"{TEXT}cross_attention_layers": [1, 3], "vision_config.intermediate_layers_indices": [0, 1],
               "vision_config.vision_output_dim": 192, "vision_config.max_num_tiles": 1,
               "vision_config.supported_aspect_ratios": [[1, 1]], "vision_config.num_global_layers": 1},
    "pp_formulanet": {"vision_config.image_size": 64, "vision_config.post_conv_in_channels": 64},
    "granite_docling": {"scale_factor": 2},
    "granite4_vision": PINPOINTS | {"deepstack_layer_map": [[0, 1], [1, 2]], "downsample_rate": "1/2",
                                    "spatial_target_layers": [0, 1, 2, 3]},
    "hunyuan_vl": {f"{TEXT}rope_parameters": _rope(4, 2, 2, alpha=1.0), f"{TEXT}head_dim": 16,
                   "vision_config.max_image_size": 64},
    "hy_v4_vl": {f"{TEXT}rope_parameters": _rope(4, 2, 2)},
    "inkling_mm_model": {"vision_config.n_layers": 2, "vision_config.patch_size": 8},
    "instructblipvideo": {"video_token_index": MARKS, "image_token_index": None},
    "kimi_k25": {f"{TEXT}num_key_value_heads": 4, f"{TEXT}head_dim": 16},
    "lfm2_vl": {f"{TEXT}layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"vision_config.intermediate_size": 256},
    "mistral_large4": {"vision_config.image_size": 64, f"{TEXT}num_key_value_heads": 4},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0], "vision_config.num_position_embeddings": 16},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"/out_hidden_size": 256, "audio_config.num_hidden_layers": 4},
    "nemotron_h_omni": {"vision_config.video_temporal_patch_size": 2, "vision_config.max_img_size": 64},
    "paddleocr_vl": {f"{TEXT}rope_parameters": _rope(8, 4, 4)},
    "perception_lm": {"vision_config.model_args": {"embed_dim": 64}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": MARKS + 8},
    "qwen4_exp": {f"{TEXT}indexer_n_heads": 4, f"{TEXT}indexer_kv_heads": 1, f"{TEXT}indexer_head_dim": 32,
                  f"{TEXT}indexer_budget": 16, f"{TEXT}indexer_compress_ratio": 2},
    "step3p7": {f"{TEXT}sliding_window": 24, "vision_config.image_size": 32},
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "unlimited_ocr": {f"{TEXT}num_key_value_heads": 4, "vision_config.sam_config.downsample_channels": [64, 64],
                      "vision_config.sam_config.image_size": 64, "vision_config.encoder_config.image_size": 16},
    "vipllava": {"vision_feature_layers": [-1, -2]},
}  # fmt: skip

# How pixels are handed over, where the parameters of `forward` do not tell.
READERS: dict[str, Callable[..., of.Tensors]] = {
    **_each(("lighton_ocr", "mistral3", "mistral_large4", "emu3"), of.sized),
    **_each(("granite4_vision", "llava_next", "llava_next_video", "llava_onevision"), of.tiled),
    **_each(("cosmos3_edge", "dots3_note", "ernie4_5_vl_moe"), partial(of.grid, times=1)),
    **_each(("muse_glimmer", "muse_spark"), partial(of.grid, times=2, blocks=False)),
    **_each(("idefics2", "idefics3", "smolvlm"), of.slots),
    **_each(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), of.strip),
    **_each(("deepseek_ocr2", "florence2", "got_ocr2", "pp_chart2table", "pp_formulanet",
                     "unlimited_ocr"),
                    partial(of.square, side=64)),
    **_each(("kosmos-2.5", "pix2struct"), of.numbered),
    "deepseek_vl_hybrid": of.two_sizes,
    "fuyu": of.lines,
    "gemma4": of.placed,
    "gemma4_unified": partial(of.placed, merge=1, side=12),
    "granite_docling": of.tiles,
    **_each(("hunyuan_vl", "hy_v4_vl"), partial(of.grid, blocks=False)),
    **_each(("inkling2", "inkling2_loop"), of.cells),
    "inkling_mm_model": of.timed,
    "kimi_k25": partial(of.grid, flat=False, blocks=False),
    "lfm2_vl": of.flattened,
    "molmo2": of.pooled,
    "mllama": of.one_tile,
    "nemotron_h_omni": partial(of.grid, times=1, blocks=False, name="image_grid_hw"),
    **_each(("idefics", "instructblipvideo", "perception_lm"), of.tiles_alone),
    "paddleocr_vl": partial(of.grid, flat=False, blocks=False),
    "step3p7": partial(of.square, side=32),
    "video_llama_3": partial(of.grid, times=1),
}  # fmt: skip


ALONE = ("pix2struct", "pp_formulanet", "vision-encoder-decoder")  # their prompt is a picture
WORDS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "bbox", "cross_attention_mask",
         "image_attention_mask", "image_embeds_position_mask", "image_patches_indices")  # fmt: skip
ALONG = {of.strip: 3}  # where pictures are put side by side


class TinyProcessor:
    """Stands for the processor of a type: pictures and a text become the inputs of the model.

    Words are letters; a picture is so many image tokens as the model makes features of it, between two marks.
    """

    tokenizer = None

    def __init__(self, model: Any, kind: str):
        self.model, self.forward = model, set(signature(model.forward).parameters)
        self.alone, self.encoder = kind in ALONE, model.config.is_encoder_decoder
        self.reader = READERS.get(kind) or (of.grid if "image_grid_thw" in self.forward else of.square)
        self.image_processor = SimpleNamespace(to_json_string=lambda: kind)
        found = (getattr(model.config, name, None) for name in IMAGE_IDS)
        self.image_id = next((number for number in found if isinstance(number, int)), None)

    def __call__(self, images: Any, text: str = "?", return_tensors: str = "pt") -> of.Tensors:
        images = images if isinstance(images, list) else [images]
        made = [self._more(self.reader(np.asarray(image), self.model.config)) for image in images]
        ids = [1]
        for one in made:
            ids += [3, *[self.image_id or 6] * (self._count(one) or 1), 4]
        ids += [5 + ord(letter) % 48 for letter in text]
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        inputs |= {name: torch.cat([one[name] for one in made]) for name in made[0]}
        return self._completed(inputs)

    def _completed(self, inputs: of.Tensors) -> of.Tensors:
        """What else the type wants beside ids and pixels."""
        ids = inputs["input_ids"]
        if self.alone:  # a prompt without words
            del inputs["input_ids"], inputs["attention_mask"]
        if "image_embeds_position_mask" in self.forward:
            ids[:, 2 : 2 + LATENTS] = 6
            inputs["image_embeds_position_mask"] = torch.zeros_like(ids)
            inputs["image_embeds_position_mask"][:, 2 : 2 + LATENTS] = 1
        if "image_patches_indices" in self.forward:
            here = ids == self.image_id
            inputs["image_patches_indices"] = torch.where(here, here.long().cumsum(1) - 1, -1)
        if "cross_attention_mask" in self.forward:
            inputs["cross_attention_mask"] = torch.ones(1, ids.shape[1], 1, 1, dtype=torch.long)
        if "image_attention_mask" in self.forward:
            inputs["image_attention_mask"] = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
        if "bbox" in self.forward:
            inputs["bbox"] = torch.rand(1, ids.shape[1], 4, generator=torch.Generator().manual_seed(0)).sort(2).values
        if "mm_token_type_ids" in self.forward:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image_id).long()
        if "token_type_ids" in self.forward:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        return inputs

    def together(self, prompts: list[of.Tensors]) -> of.Tensors:
        """Several prompts as one batch, padded on the left."""
        length = max(one["input_ids"].shape[1] for one in prompts) if not self.alone else 0
        batch = {}
        for name in prompts[0]:
            parts = [one[name] for one in prompts]
            if name in WORDS:
                behind = (0, 0) * (parts[0].ndim - 2)
                # A decoder's prompt is padded on the left, what an encoder reads on the right.
                missing = [(0, length - part.shape[1])[:: 1 if self.encoder else -1] for part in parts]
                pairs = zip(parts, missing, strict=True)
                none = -1 if name.endswith("indices") else 0
                parts = [torch.nn.functional.pad(part, (*behind, *more), value=none) for part, more in pairs]
            batch[name] = torch.cat(parts, dim=ALONG.get(self.reader, 0) if name == "pixel_values" else 0)
        return batch

    def _more(self, made: of.Tensors) -> of.Tensors:
        if "qformer_input_ids" in self.forward:
            made = {
                **made,
                "qformer_input_ids": torch.full((1, 3), 7),
                "qformer_attention_mask": torch.ones(1, 3).long(),
            }
        if "pixel_values" not in self.forward and "pixel_values" in made:
            older = next((name for name in ("image_patches", "pixel_values_images") if name in self.forward), None)
            made = {older if older and name == "pixel_values" else name: value for name, value in made.items()}
        if "image_merge_sizes" in self.forward:
            made = {**made, "image_merge_sizes": torch.tensor([2])}
        return made

    @torch.no_grad()
    def _count(self, made: of.Tensors) -> int:
        """How many features the model makes of a picture."""
        parts = (self.model, getattr(self.model, "model", None))
        if "image_embeds_position_mask" in self.forward:
            return LATENTS
        for part, name in product(parts, ("get_image_features", "get_video_features")):
            if hasattr(part, name) and self.image_id is not None:
                wanted = signature(getattr(part, name)).parameters
                if "pixel_values" in wanted and "pixel_values" not in made:
                    made = {"pixel_values": next(iter(made.values()))}
                stated = [one for one in wanted if one.startswith("vision_feature")]
                out = getattr(part, name)(**made, **{one: getattr(self.model.config, one, "default") for one in stated})
                break
        else:
            return 0
        found = getattr(out, "pooler_output", out)
        if found is None:  # features are put in at several layers, or projected later
            found = out.deepstack_features[0][1] if hasattr(out, "deepstack_features") else out.last_hidden_state
        listed = found if isinstance(found, list | tuple) else [found]
        return sum(part[..., 0].numel() for part in listed)


def build(kind: str) -> tuple[Any, TinyProcessor]:
    """The tiny model of a type, its weights large enough that attention is not flat, and its processor."""
    cls = getattr(transformers, CLASSES[kind])
    torch.manual_seed(0)
    config = tiny_config(cls.config_class, deepcopy(CHANGES.get(kind, {})))
    timm = hasattr(getattr(config, "vision_config", None), "architecture")
    with stand_in(64, sequence=hasattr(config, "vision_use_cls_token")) if timm else nullcontext():
        model = cls(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.std() < 0.01:  # some projectors begin with nothing, some towers with 1e-10
            parameter.data.normal_(0, 0.1)
        if name.endswith("bias") and not parameter.any():
            parameter.data.normal_(0, 0.1)
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    if hasattr(model, "generation_config"):
        model.generation_config.eos_token_id, model.generation_config.use_cache = None, True
        if config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
            model.generation_config.decoder_start_token_id = 1
    return model, TinyProcessor(model, kind)
