"""From queries, keys and hidden states to attention logits."""

from __future__ import annotations

from typing import Any

import torch


def newest_logits(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Attention logits of the newest query over all keys: float32 [row, head, key], -inf where masked.

    query [row, head, q, dim]; key [row, kv_head, key, dim], not expanded; mask bool or additive [row, 1, q, key].
    """
    rows, heads, _, dim = query.shape
    grouped = query[:, :, -1].view(rows, key.shape[1], heads // key.shape[1], dim)
    logits = torch.matmul(grouped, key.transpose(2, 3)).float().mul_(scaling).view(rows, heads, -1)
    if mask is None:
        return logits
    newest = mask[:, :, -1, : logits.shape[-1]]
    return logits.masked_fill(~newest, -torch.inf) if newest.dtype == torch.bool else logits + newest.float()


def project(attention: Any, letter: str, states: torch.Tensor, dim: int) -> torch.Tensor:
    """Queries or keys [row, head, token, dim] of normalised states, normalised per head where the model does so."""
    made = getattr(attention, f"{letter}_proj")(states)
    norm = getattr(attention, f"{letter}_norm", None)
    per_head = made.view(*made.shape[:2], -1, dim)
    if norm is not None:
        whole = norm.weight.shape[-1] == made.shape[-1]
        per_head = norm(made).view(per_head.shape) if whole else norm(per_head)
    return per_head.transpose(1, 2)
