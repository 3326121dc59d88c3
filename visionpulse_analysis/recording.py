"""Attention at one decode step: what is recorded, and how a pruner's choice is carried out."""

from __future__ import annotations

from typing import Literal

import torch

from visionpulse_analysis.attention import stock
from visionpulse_analysis.pruners.base import Selection, View

Execution = Literal["masked", "gathered"]


def newest_logits(module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float):
    """Attention logits of the newest query over all keys: float32 [row, head, key], -inf where masked.

    query [row, head, q, dim]; key [row, kv_head, key, dim], not expanded; mask bool or additive [row, 1, q, key].
    """
    rows, heads, _, dim = query.shape
    grouped = query[:, :, -1].view(rows, key.shape[1], heads // key.shape[1], dim)
    logits = (torch.matmul(grouped, key.transpose(2, 3)).float() * scaling).view(rows, heads, -1)
    if mask is None:
        return logits
    newest = mask[:, :, -1, : logits.shape[-1]]
    return logits.masked_fill(~newest, -torch.inf) if newest.dtype == torch.bool else logits + newest.float()


class StepAttention:
    """The attention function used while decoding: records rows, applies a selection, leaves outputs to the library.

    Parameters
    ----------
    places : int64 [row, patch]
        Sequence position of each patch in the padded batch; padding points anywhere.
    patches : bool [row, patch]
        False at padding.
    layers : list of int
        Layers to record; empty records nothing.
    per_head : list of int or None
        Heads to record one by one; None records the head mean.
    """

    def __init__(
        self,
        places: torch.Tensor,
        patches: torch.Tensor,
        layers: list[int],
        per_head: list[int] | None,
        selection: Selection | None = None,
        execution: Execution = "masked",
    ):
        self.places, self.patches = places, patches
        self.layers, self.per_head = layers, per_head
        self.selection, self.execution = selection, execution
        self.step = 0
        self.logits: dict[int, torch.Tensor] = {}

    def __call__(self, module, query, key, value, attention_mask, *, scaling=None, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        refuse_inexact(options)
        layer = module.layer_idx
        mask, kept = attention_mask, None
        if self.selection is not None and self.step > 0:
            kept = self._select(module, layer, query, key, attention_mask, scaling)
            if kept is not None:
                mask = self._hide(attention_mask, kept, key.shape[2])
        if layer in self.layers:
            self.logits[layer] = newest_logits(module, query, key, mask, scaling)
        if kept is not None and self.execution == "gathered":
            key, value, mask = gather(key, value, mask)
        return stock(module, query, key, value, mask, scaling=scaling, **options)

    def _select(self, module, layer, query, key, mask, scaling) -> torch.Tensor | None:
        cached: dict[str, torch.Tensor] = {}

        def logits() -> torch.Tensor:
            if "all" not in cached:
                cached["all"] = newest_logits(module, query, key, mask, scaling)
            return cached["all"]

        def patch_logits() -> torch.Tensor:
            index = self.places[:, None].expand(-1, query.shape[1], -1)
            return logits().gather(2, index).masked_fill(~self.patches[:, None], -torch.inf)

        kept = self.selection.visible(View(self.step, layer, torch.arange(len(query)), logits, patch_logits))
        return None if kept is None or bool((kept | ~self.patches).all()) else kept

    def _hide(self, mask: torch.Tensor | None, kept: torch.Tensor, n_keys: int) -> torch.Tensor:
        """Boolean mask [row, 1, 1, key] that hides the dropped patches as well."""
        visible = torch.ones(len(kept), n_keys, dtype=torch.bool, device=kept.device)
        # Padding shares positions with real tokens, so dropped patches are counted rather than scattered.
        dropped = torch.zeros(len(kept), n_keys, dtype=torch.int32, device=kept.device)
        dropped.scatter_add_(1, self.places, (self.patches & ~kept).int())
        visible &= dropped == 0
        if mask is None:
            return visible[:, None, None]
        if mask.dtype != torch.bool:
            return mask.masked_fill(~visible[:, None, None], torch.finfo(mask.dtype).min)
        return mask & visible[:, None, None]

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the step just made: float16 [row, layer, (head,) patch], and masses float32 [row, layer, (head)]."""
        if not self.layers:
            none = torch.zeros(len(self.patches), 0, self.patches.shape[1], dtype=torch.float16)
            return none, none[..., 0].float()
        missing = [layer for layer in self.layers if layer not in self.logits]
        if missing:
            raise RuntimeError(
                f"layers {missing} did not report at step {self.step}: their attention was not routed here"
            )
        # All layers at once: at one query a step, the number of small operations is what recording costs.
        logits = torch.stack([self.logits.pop(layer) for layer in self.layers], dim=1)
        weights = torch.softmax(logits, dim=-1)
        index = self.places[:, None, None].expand(*weights.shape[:3], -1)
        weights = weights.gather(3, index) * self.patches[:, None, None]
        weights = weights.mean(dim=2) if self.per_head is None else weights[:, :, self.per_head]
        return weights.half().cpu(), weights.sum(dim=-1).cpu()

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self.places, self.patches = self.places[rows], self.patches[rows]
        if self.selection is not None:
            self.selection.drop_rows(rows)


def refuse_inexact(options: dict) -> None:
    """Raise ValueError for attention variants whose rows the recorder would get wrong."""
    for name, meaning in (
        ("softcap", "soft-capped logits"),
        ("s_aux", "sink logits"),
        ("position_bias", "position bias"),
    ):
        if options.get(name) is not None:
            raise ValueError(f"this model uses {meaning} ({name}); its attention cannot be recorded exactly")


def gather(key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor):
    """Copy out the keys and values that a mask leaves visible, so that attention reads only those.

    key, value [row, kv_head, key, dim]; mask bool [row, 1, 1, key]. Rows with fewer visible keys are padded and masked.
    """
    if mask.dtype != torch.bool:
        raise ValueError(
            f"gathered execution needs a boolean mask, the model passed {mask.dtype}; use execution='masked'"
        )
    visible = mask[:, 0, 0]
    counts = visible.sum(dim=1)
    width = int(counts.max())
    index = torch.sort(visible, dim=1, descending=True, stable=True).indices[:, :width]
    real = torch.arange(width, device=key.device)[None] < counts[:, None]
    expanded = index[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
    short = None if bool(real.all()) else real[:, None, None]
    return (
        key.gather(2, expanded),
        value.gather(2, index[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[3])),
        short,
    )
