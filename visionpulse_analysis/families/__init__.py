"""The families of models: one short file for each way of turning a picture into tokens."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.families.anyres import LlavaNext, LlavaOneVision
from visionpulse_analysis.families.base import Family, Prompt
from visionpulse_analysis.families.idefics3 import Idefics3
from visionpulse_analysis.families.internvl import AyaVision, InternVL
from visionpulse_analysis.families.pixtral import Pixtral
from visionpulse_analysis.families.prompt_options import PromptOptions
from visionpulse_analysis.families.prompts import in_columns, in_rows
from visionpulse_analysis.families.qwen import Glm4v, Glm46v, Qwen3, Qwen25, QwenGrid
from visionpulse_analysis.families.smolvlm import SmolVLM
from visionpulse_analysis.families.square import DeepseekVL, Gemma3, Llava, PaliGemma

__all__ = [
    "FAMILIES",
    "Family",
    "Prompt",
    "PromptOptions",
    "UnsupportedModelError",
    "attention_of",
    "check_supported",
    "family_class",
    "in_columns",
    "in_rows",
]

FAMILIES: dict[str, type[Family]] = {
    "aya_vision": AyaVision,
    "deepseek_vl": DeepseekVL,
    "gemma3": Gemma3,
    "glm46v": Glm46v,
    "glm4v": Glm4v,
    "glm4v_moe": Glm4v,
    "idefics3": Idefics3,
    "internvl": InternVL,
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOneVision,
    "mistral3": Pixtral,
    "paligemma": PaliGemma,
    "qwen2_5_vl": Qwen25,
    "qwen2_vl": QwenGrid,
    "qwen3_vl": Qwen3,
    "qwen3_vl_moe": Qwen3,
    "smolvlm": SmolVLM,
    "vipllava": Llava,
}


CROSS_ATTENTION = "pictures are read by cross-attention and are no tokens of the sequence: no row runs over patches"
QUERY_TOKENS = "learned queries mix the whole picture into every image token: none of them has a place in the picture"
ENCODER_DECODER = (
    "pictures are read by an encoder, and the decoder sees them by cross-attention: no row runs over patches"
)
REFUSED = {
    "blip-2": QUERY_TOKENS,
    "florence2": ENCODER_DECODER,
    "idefics": CROSS_ATTENTION,
    "idefics2": QUERY_TOKENS,
    "instructblip": QUERY_TOKENS,
    "instructblipvideo": QUERY_TOKENS,
    "kosmos-2": QUERY_TOKENS,
    "mllama": CROSS_ATTENTION,
    "pix2struct": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
}
# Language models whose eager functions know more than scaled-dot-product attention, which leaves it out.
WITH_SINKS = {"gpt_oss"}


class UnsupportedModelError(ValueError):
    """The model cannot be recorded exactly, and the message says why."""


def check_supported(config: Any, name: str) -> None:
    """Raise :class:`UnsupportedModelError` unless a model of this configuration can be recorded exactly."""
    supported = f"supported: {', '.join(FAMILIES)}"
    if config.model_type in REFUSED:
        raise UnsupportedModelError(
            f"{name!r} is of family {config.model_type!r}, where {REFUSED[config.model_type]}; {supported}"
        )
    if getattr(config, "vision_config", None) is None:
        raise UnsupportedModelError(
            f"{name!r} is a {config.model_type} model without a vision part; give a vision-language model, {supported}"
        )
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{name!r} is of family {config.model_type!r}, whose image layout is not known here; {supported}. "
            "vpa.watch(model, processor) records any model inside its own generate"
        )


def attention_of(config: Any) -> str:
    """The attention under which a model computes what it was trained to: "eager" with capped logits or sinks."""
    text = config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    return "eager" if capped or text.model_type in WITH_SINKS else "sdpa"


def family_class(config: Any) -> type[Family]:
    """The family of a supported configuration."""
    # Pixtral itself comes as a LLaVA model with another tower.
    tower = getattr(config.vision_config, "model_type", None)
    return Pixtral if config.model_type == "llava" and tower == "pixtral" else FAMILIES[config.model_type]
