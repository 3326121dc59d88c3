"""Attention at one step: what is recorded, and how a pruner's choice is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from visionpulse_analysis.attention import stock
from visionpulse_analysis.pruners.base import Layout, Selection, View

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
    layout : Layout
        Where the patches are in the padded batch.
    layers : list of int
        Layers to record; empty records nothing.
    per_head : list of int or None
        Heads to record one by one; None records the head mean.
    selection : Selection, optional
        Hides patches from step 1 on.
    execution : "masked" or "gathered"
        Hide them by a mask, or leave their keys and values unread.
    """

    def __init__(
        self,
        layout: Layout,
        layers: list[int],
        per_head: list[int] | None,
        selection: Selection | None = None,
        execution: Execution = "masked",
    ):
        self.layout, self.layers, self.per_head = layout, layers, per_head
        self.selection, self.execution = selection, execution
        self.step = 0
        self.logits: dict[int, torch.Tensor] = {}
        self.reading: Reading | None = None

    def __call__(self, module, query, key, value, attention_mask, *, scaling=None, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        refuse_inexact(options)
        view = self._view(module, query, key, attention_mask, scaling)
        reading = None if self.selection is None else self._read(self.selection, view, key, attention_mask)
        if view.layer in self.layers:
            logits = view.logits()
            hidden = None if reading is None else ~reading.visible[:, None]
            self.logits[view.layer] = logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
        mask = attention_mask
        if reading is not None and self.execution == "gathered":
            key, value, mask = reading.gather(key), reading.gather(value), reading.short
        elif reading is not None:
            mask = reading.visible[:, None, None]
        return stock(module, query, key, value, mask, scaling=scaling, **options)

    def _view(self, module, query, key, mask, scaling) -> View:
        made: list[torch.Tensor] = []

        def logits() -> torch.Tensor:
            if not made:
                made.append(newest_logits(module, query, key, mask, scaling))
            return made[0]

        def patch_logits() -> torch.Tensor:
            index = self.layout.places[:, None].expand(-1, query.shape[1], -1)
            return logits().gather(2, index).masked_fill(~self.layout.patches[:, None], -torch.inf)

        return View(self.step, module.layer_idx, logits, patch_logits)

    def _read(self, selection: Selection, view: View, key, mask) -> Reading | None:
        """What this layer reads; None where nothing is hidden. Layers that share a choice share the work."""
        if self.step == 0:
            selection.observe_prefill(view)
            return None
        kept = selection.visible(view)
        if kept is None:
            return None
        if self.reading is None or not self.reading.serves(kept, mask, key.shape[2]):
            self.reading = Reading.of(kept, mask, key.shape[2], self.layout)
        return self.reading if self.reading.hides else None

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the step just made: float16 [row, layer, (head,) patch], and masses float32 [row, layer, (head)]."""
        patches = self.layout.patches
        if not self.layers:
            none = torch.zeros(len(patches), 0, patches.shape[1], dtype=torch.float16)
            return none, none[..., 0].float()
        missing = [layer for layer in self.layers if layer not in self.logits]
        if missing:
            raise RuntimeError(
                f"layers {missing} did not report at step {self.step}: their attention was not routed here"
            )
        # All layers at once: at one query a step, the number of small operations is what recording costs.
        logits = torch.stack([self.logits.pop(layer) for layer in self.layers], dim=1)
        weights = torch.softmax(logits, dim=-1)
        index = self.layout.places[:, None, None].expand(*weights.shape[:3], -1)
        weights = weights.gather(3, index) * patches[:, None, None]
        weights = weights.mean(dim=2) if self.per_head is None else weights[:, :, self.per_head]
        return weights.half().cpu(), weights.sum(dim=-1).cpu()

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self.layout, self.reading = self.layout.take(rows), None
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


@dataclass
class Reading:
    """The keys that one choice leaves visible at one step.

    visible : bool [row, key]; hides : whether any patch is hidden; index : int64 [row, width], the visible keys in
    order, padded with 0; short : bool [row, 1, 1, width], False at that padding, or None where no row has any.
    """

    kept: torch.Tensor
    given: torch.Tensor | None
    visible: torch.Tensor
    hides: bool
    index: torch.Tensor
    short: torch.Tensor | None

    @classmethod
    def of(cls, kept: torch.Tensor, mask: torch.Tensor | None, n_keys: int, layout: Layout) -> Reading:
        """Work out what to read of ``n_keys`` keys; kept bool [row, patch], mask bool [row, 1, 1, key] or None."""
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(
                f"pruning needs a boolean attention mask, this model passes {mask.dtype}; decode it without a pruner"
            )
        # Padding shares places with real tokens, so dropped patches are counted rather than scattered.
        dropped = torch.zeros(len(kept), n_keys, dtype=torch.int32, device=kept.device)
        dropped.scatter_add_(1, layout.places, (layout.patches & ~kept).int())
        visible = dropped == 0 if mask is None else (dropped == 0) & mask[:, 0, -1]
        slot = visible.cumsum(dim=1) - 1
        counts = slot[:, -1] + 1
        # One wait for the device per choice, none in the layers that share it.
        width, narrowest, hides = torch.stack([counts.max(), counts.min(), dropped.sum()]).tolist()
        keys = torch.arange(n_keys, device=kept.device).expand(len(kept), -1)
        index = torch.zeros(len(kept), width + 1, dtype=torch.int64, device=kept.device)
        index = index.scatter_(1, torch.where(visible, slot, width), keys)[:, :width]
        short = None if narrowest == width else (keys[:, :width] < counts[:, None])[:, None, None]
        return cls(kept, mask, visible, hides > 0, index, short)

    def serves(self, kept: torch.Tensor, mask: torch.Tensor | None, n_keys: int) -> bool:
        """Whether this was worked out for the very same choice, mask and step."""
        return self.kept is kept and self.given is mask and self.visible.shape[1] == n_keys

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """Copy out the visible keys or values: [row, kv_head, key, dim] -> [row, kv_head, width, dim]."""
        out = states.new_empty(*states.shape[:2], self.index.shape[1], states.shape[3])
        # Row by row: index_select copies whole vectors and is ten times as fast as torch.gather here.
        for row, index in enumerate(self.index):
            torch.index_select(states[row], 1, index, out=out[row])
        return out
