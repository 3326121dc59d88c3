"""How to decode, checked: which layers and heads are recorded, what hides patches, how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visionpulse_analysis.attending import Execution
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.sampling import Sample


@dataclass(frozen=True)
class Options:
    """How to decode.

    layers : zero-based, in order; empty records nothing. heads : recorded one by one, or None for their mean. The
    others are those of :func:`decode`.
    """

    layers: list[int]
    heads: list[int] | None
    pruner: Pruner | None = None
    execution: Execution = "masked"
    sample: Sample | None = None
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.execution not in ("masked", "gathered"):
            raise ValueError(f"execution must be 'masked' or 'gathered', got {self.execution!r}")


def layers_of(vlm: VLM, layers: Any) -> list[int]:
    """The layers that "all", "anchor", "none", an index or a list of indices means; ValueError for anything else."""
    n = vlm.n_layers
    if isinstance(layers, str):
        known = {"all": list(range(n)), "anchor": [vlm.default_anchor], "none": []}
        if layers not in known:
            raise ValueError(f"layers must be 'all', 'anchor', 'none', an int or a list of int, got {layers!r}")
        return known[layers]
    chosen = [layers] if isinstance(layers, int) else [int(layer) for layer in layers]
    wrong = [layer for layer in chosen if not 0 <= layer < n]
    if wrong or len(set(chosen)) != len(chosen):
        raise ValueError(f"layers {chosen}: expected different indices from 0 to {n - 1} ({vlm.name} has {n} layers)")
    return sorted(chosen)


def heads_of(vlm: VLM, heads: Any) -> list[int] | None:
    """The heads that "all" or a list of indices means, None for "mean"; ValueError for anything else."""
    n = vlm.model.config.get_text_config().num_attention_heads
    if isinstance(heads, str):
        if heads not in ("mean", "all"):
            raise ValueError(f"heads must be 'mean', 'all' or a list of int, got {heads!r}")
        return None if heads == "mean" else list(range(n))
    chosen = [int(head) for head in heads]
    if not chosen or len(set(chosen)) != len(chosen) or any(not 0 <= head < n for head in chosen):
        raise ValueError(f"heads {chosen}: expected different indices from 0 to {n - 1} ({vlm.name} has {n} heads)")
    return chosen
