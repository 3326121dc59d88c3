"""Tiny configurations of any model type: its default configuration, each size made small by the name of its field.

Nothing here knows a type: whatever else a type needs is said by name in `tiny_types`.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

WORDS = 128  # size of the vocabulary
MARKS = 90  # the first id of image tokens and the like
PATCH, SIDE = 4, 16  # pixels of a patch of the vision tower, and of the square pictures it is made for

WIDTHS = ("hidden_size", "d_model", "embed_dim", "hidden_dim", "out_hidden_size", "text_hidden_size",
          "encoder_hidden_size", "projection_dim", "output_dim", "image_text_hidden_size", "vision_hidden_size",
          "word_embed_proj_dim", "cross_attention_hidden_size", "projection_hidden_size", "projector_input_dim",
          "projector_output_dim", "vision_output_dim", "patch_embed_hidden_size", "output_channels",
          "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "mlp_dim", "adapter_in_dim",
          "adapter_out_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp",
          "projector_hidden_size", "moe_shared_expert_intermediate_size", "dense_intermediate_size",
          "shared_intermediate_size", "shared_experts_intermediate_size", "share_expert_dim", "moe_hidden_size",
          "alignment_intermediate_size", "projection_intermediate_size", "projection_hidden_dim", "decoder_hidden_size",
          "pooler_output_size")  # fmt: skip
DEPTHS = ("num_hidden_layers", "decoder_layers", "num_layers", "num_decoder_layers", "layers", "depth",
          "encoder_layers", "n_layers")  # fmt: skip
HEADS = ("num_attention_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads", "attention_heads",
         "swa_num_attention_heads", "num_sliding_attention_heads", "resampler_n_heads", "linear_num_heads",
         "conf_num_attention_heads", "index_n_heads", "mamba_num_heads", "resampler_heads")  # fmt: skip
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTHS, 64), **dict.fromkeys(DEPTHS, 4), **dict.fromkeys(HEADS, 4),
    "num_key_value_heads": 2, "swa_num_key_value_heads": 2, "head_dim": 32, "swa_head_dim": 32, "global_head_dim": 32,
    "d_kv": 16, "mamba_head_dim": 16, "linear_head_dim": 16, "resampler_head_dim": 16, "resampler_dim_head": 16,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "qk_rope_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "index_head_dim": 32, "index_topk": 12, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 16,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "sliding_window": 24,
    "sliding_window_size": 24, "num_kv_shared_layers": 2, "vocab_size": WORDS, "max_position_embeddings": 512,
    "patch_size": PATCH, "image_size": SIDE, "query_pre_attn_scalar": 32, "resampler_depth": 1,
    "resampler_n_latents": 8, "resampler_num_latents": 8, "num_query_tokens": 8, "num_position_embeddings": 256,
}  # fmt: skip
TOWER_DEPTH = 2
PICTURES = ("image_token_id", "image_token_index")


def tiny_config(kind: type, changes: dict[str, Any], path: str = "") -> Any:
    """A small configuration of a class.

    Parameters
    ----------
    kind : the configuration class
    changes : values of fields by their path, such as "vision_config.depth"; those of no path hold everywhere
    """
    default = kind()
    given = {name: _shrink(name, value, path) for name, value in _fields(default).items() if name in SIZES}
    given |= _marks(_fields(default))
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(default, name)
        if isinstance(part, PretrainedConfig):
            given[name] = tiny_config(type(part), changes, f"{path}{name}.")
        elif part is not None:
            given[name] = part
        elif any(change.startswith(f"{path}{name}.") for change in changes):
            given[name] = tiny_config(kind.sub_configs[name], changes, f"{path}{name}.")
    kinds = getattr(default, "layer_types", None)
    if kinds and "layer_types" not in given:
        order, count = list(dict.fromkeys(kinds)), given.get("num_hidden_layers", SIZES["num_hidden_layers"])
        if not any(f"{path}{name}" in changes for name in ("layer_types",)):
            given["layer_types"] = [order[i % len(order)] for i in range(count)]
    rope = getattr(default, "rope_parameters", None)
    if rope:
        given["rope_parameters"] = _rope(rope, given.get("head_dim", 16))
    own = {name: value for name, value in changes.items() if "." not in name and (not path or hasattr(default, name))}
    own |= {name.removeprefix(path): value for name, value in changes.items()
            if path and name.startswith(path) and "." not in name.removeprefix(path)}  # fmt: skip
    own |= {name[1:]: value for name, value in changes.items() if not path and name.startswith("/")}
    own = {name: value for name, value in own.items() if not name.startswith("/")}
    given |= own
    return kind(**given)


def _fields(config: Any) -> dict[str, Any]:
    found = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if value is not None or name in PICTURES}


def _shrink(name: str, value: Any, path: str) -> Any:
    small = SIZES[name]
    if name in DEPTHS and small_tower(path):
        small = TOWER_DEPTH
    if name == "head_dim" and small_tower(path):
        small = 16
    if isinstance(value, bool) or not isinstance(value, int):
        return value if not isinstance(value, list | tuple) else type(value)([small] * len(value))
    return min(value, small) if name not in WIDTHS else small


def small_tower(path: str) -> bool:
    return bool(path) and "text" not in path and "decoder" not in path


def _marks(fields: dict[str, Any]) -> dict[str, int]:
    """Ids of special tokens beyond the small vocabulary, numbered anew; the usual ones in front, each type's own."""
    usual = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    given = {name: number for name, number in usual.items() if name in fields}
    names = sorted(name for name, value in fields.items()
                   if name.endswith(("_token_id", "_token_index", "_patch_id")) and name not in usual
                   and (isinstance(value, int) or name in PICTURES))  # fmt: skip
    return given | {name: MARKS + number for number, name in enumerate(names)}


def _rope(rope: dict[str, Any], dim: int) -> dict[str, Any]:
    if "rope_theta" not in rope and all(isinstance(part, dict) for part in rope.values()):
        return {name: _rope(part, dim) for name, part in rope.items()}
    if rope.get("mrope_section"):
        half, old = int(dim * rope.get("partial_rotary_factor", 1.0)) // 2, rope["mrope_section"]
        parts = [max(1, half * part // sum(old)) for part in old]
        parts[0] += half - sum(parts)
        return {**rope, "mrope_section": parts}
    return dict(rope)
