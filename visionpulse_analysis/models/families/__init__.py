"""The families of models: one short file for each way of turning a picture into tokens."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from visionpulse_analysis._util.checks import UnsupportedModelError
from visionpulse_analysis.models.asking import PromptOptions
from visionpulse_analysis.models.families.anyres import LlavaNext, LlavaOneVision
from visionpulse_analysis.models.families.base import Family, Prompt
from visionpulse_analysis.models.families.idefics3 import Idefics3
from visionpulse_analysis.models.families.internvl import AyaVision, InternVL
from visionpulse_analysis.models.families.pixtral import Pixtral
from visionpulse_analysis.models.families.prompts import in_columns, in_rows
from visionpulse_analysis.models.families.qwen import Glm4v, Glm46v, Qwen3, Qwen25, QwenGrid
from visionpulse_analysis.models.families.smolvlm import SmolVLM
from visionpulse_analysis.models.families.square import DeepseekVL, Gemma3, Llava, PaliGemma
from visionpulse_analysis.models.families.stock import Stock

__all__ = [
    "FAMILIES",
    "Family",
    "Prompt",
    "PromptOptions",
    "Stock",
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


CROSS_ATTENTION = "pictures are read by cross-attention and are no tokens of the prompt; vpa.watch records its rows"
ENCODER_DECODER = (
    "pictures are read by an encoder, and the decoder sees them by cross-attention; vpa.watch records its rows"
)
OWN_SOFTMAX = "the language part computes a softmax of its own, past the library's attention functions"
REFUSED = {
    "blip": OWN_SOFTMAX,
    "florence2": ENCODER_DECODER,
    "git": OWN_SOFTMAX,
    "idefics": CROSS_ATTENTION,
    "mllama": CROSS_ATTENTION,
    "pix2struct": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
}
READS = "AutoModelForImageTextToText"
# Language models whose eager functions know more than scaled-dot-product attention, which leaves it out.
WITH_SINKS = {"gpt_oss"}


def check_supported(config: Any, name: str) -> None:
    """Raise :class:`UnsupportedModelError` unless a model of this configuration can be recorded exactly."""
    kind = config.model_type
    reason = REFUSED.get(kind)
    if reason is None and getattr(config, "is_encoder_decoder", False):
        reason = ENCODER_DECODER
    if reason is not None:
        raise UnsupportedModelError(f"{name!r} is of family {kind!r}, where {reason}; give a model whose pictures are "
                                    "tokens of its sequence")  # fmt: skip
    own = getattr(config, "auto_map", None) or {}
    registered = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING  # also what a user has registered
    if kind not in FAMILIES and not registered and READS not in own:
        raise UnsupportedModelError(
            f"{name!r} is a {kind} model without a vision part; give a vision-language model, of a type that "
            f"{READS} of transformers knows"
        )


def attention_of(config: Any) -> str:
    """The attention under which a model computes what it was trained to: "eager" with capped logits or sinks."""
    text = config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    return "eager" if capped or text.model_type in WITH_SINKS else "sdpa"


def family_class(config: Any) -> type[Family] | None:
    """The family of a configuration; None where nothing is known of its kind, and `Stock` serves."""
    # Pixtral itself comes as a LLaVA model with another tower.
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    return Pixtral if config.model_type == "llava" and tower == "pixtral" else FAMILIES.get(config.model_type)
