"""A tiny random model of each family, built from its own configuration, with its real processor."""

from __future__ import annotations

from collections.abc import Callable

import tiny_grids as grids
import tiny_tiles as tiles
import torch
from tiny_parts import Tiny

BUILDERS: dict[str, Callable[[], Tiny]] = {
    "qwen3_vl": grids.qwen3_vl,
    "qwen3_vl_moe": grids.qwen3_vl_moe,
    "qwen2_5_vl": grids.qwen2_5_vl,
    "qwen2_vl": grids.qwen2_vl,
    "internvl": tiles.internvl,
    "internvl2_5": tiles.internvl2_5,
    "internvl3_5": tiles.internvl3_5,
    "internvl3_5_moe": tiles.internvl3_5_moe,
    "aya_vision": tiles.aya_vision,
    "llava": grids.llava,
    "llava_siglip": grids.llava_siglip,
    "vipllava": grids.vipllava,
    "deepseek_vl": grids.deepseek_vl,
    "llava_next": tiles.llava_next,
    "llava_onevision": tiles.llava_onevision,
    "gemma3": grids.gemma3,
    "idefics3": tiles.idefics3,
    "smolvlm": tiles.smolvlm,
    "paligemma": grids.paligemma,
    "pixtral": grids.pixtral,
    "mistral3": grids.mistral3,
    "glm4v": grids.glm4v,
    "glm4v_moe": grids.glm4v_moe,
    "glm46v": grids.glm46v,
}


def build(family: str) -> Tiny:
    """The tiny model of a family, its weights large enough that attention is not flat."""
    torch.manual_seed(0)
    tiny = BUILDERS[family]()
    for name, parameter in tiny.model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    return tiny
