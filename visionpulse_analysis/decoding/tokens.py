"""Tokens with a meaning of their own: padding, and what ends a trace."""

from __future__ import annotations

from visionpulse_analysis.models.loading import VLM


def pad_id(vlm: VLM) -> int:
    """The token that fills short rows: the tokenizer's padding token, or 0, which the mask hides anyway."""
    return vlm.tokenizer.pad_token_id if vlm.tokenizer.pad_token_id is not None else 0


def end_ids(vlm: VLM) -> set[int]:
    """The tokens that end a trace. Raises ValueError where the model names none."""
    generation = getattr(vlm.model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    ends = vlm.tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError(f"{vlm.name} names no end token; set generation_config.eos_token_id")
    return set(ends) if isinstance(ends, list | tuple) else {int(ends)}
