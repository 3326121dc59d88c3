"""Attention at one step: what is recorded, and how a pruner's choice is carried out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from visionpulse_analysis.attention import stock
from visionpulse_analysis.hooks import watch_layers
from visionpulse_analysis.prefilling import Prefill, redirected_weights
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.view import Layout, View

Execution = Literal["masked", "gathered"]


class StepAttention:
    """The attention function used while decoding: records rows, applies a selection, leaves outputs to the library.

    Prefill is always simulated by masks; the execution is that of the steps after it.

    Parameters
    ----------
    layout : Layout
        Where the patches are in the padded batch.
    layers : list of int
        Layers to record; empty records nothing.
    per_head : list of int or None
        Heads to record one by one; None records the head mean.
    selection : Selection, optional
        Hides patches, in prefill or from step 1 on.
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
        self.prefill = None if selection is None else Prefill(layout, selection)
        # What each layer of this step leaves visible: bool [row, patch], None for all.
        self.shown: list[torch.Tensor | None] = [None] * layout.n_layers
        self.scored: list[int] = []  # layers whose logits decode steps asked for in order to choose
        self.joined: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None)

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """Around prefill: show the selection the hidden states of every layer."""
        return nullcontext() if self.prefill is None else watch_layers(model, self.prefill)

    def __call__(self, module, query, key, value, attention_mask, *, scaling=None, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        refuse_inexact(options)
        view = self._view(module.layer_idx, query, key, value, attention_mask, scaling)
        reading = None if self.selection is None else self._read(self.selection, view, key, attention_mask)
        if view.layer in self.layers:
            logits = view.logits()
            hidden = None if reading is None else ~reading.visible[:, None]
            self.logits[view.layer] = logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
        if self.prefill is not None and self.step == 0:
            return self.prefill.attend(module, view, attention_mask, options)
        mask = attention_mask
        if reading is not None and self.execution == "gathered":
            key, value, mask = reading.gather(key), reading.gather(value), reading.short
        elif reading is not None:
            mask = reading.visible[:, None, None]
        return stock(module, query, key, value, mask, scaling=scaling, **options)

    def _view(self, layer: int, query, key, value, mask, scaling) -> View:
        basic = (self.step, layer, self.layout, query, key, value, mask, scaling)
        prefill = self.prefill
        if prefill is None or self.step:
            return View(*basic, None if prefill is None else prefill.kept[layer])
        return View(*basic, prefill.shown, prefill.states, prefill.block)

    def _read(self, selection: Selection, view: View, key, mask) -> Reading | None:
        """What this layer reads; None where nothing is hidden. Layers that share a choice share the work."""
        if self.prefill is not None and self.step == 0:
            kept = self.prefill.choose(view)
        else:
            kept = self._both(selection.visible(view), view.shown)
            if view.scored and view.layer not in self.scored:
                self.scored.append(view.layer)
        self.shown[view.layer] = kept
        if kept is None:
            return None
        if self.reading is None or not self.reading.serves(kept, mask, key.shape[2]):
            self.reading = Reading.of(kept, mask, key.shape[2], self.layout)
        return self.reading if self.reading.hides else None

    def _both(self, now: torch.Tensor | None, left: torch.Tensor | None) -> torch.Tensor | None:
        """The patches that are visible now and that prefill left; the same object for the same two."""
        if now is None or left is None:
            return left if now is None else now
        if self.joined[0] is not now or self.joined[1] is not left:
            self.joined = (now, left, now & left)
        return self.joined[2]

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
        if self.prefill is not None and self.step == 0:
            for layer, source in self.prefill.redirects.items():
                if layer in self.layers:
                    at = self.layers.index(layer)
                    weights[:, at] = redirected_weights(weights[:, at], source)
        weights = weights.mean(dim=2) if self.per_head is None else weights[:, :, self.per_head]
        return weights.half().cpu(), weights.sum(dim=-1).cpu()

    def account(self, row: int) -> dict[str, Any]:
        """What the costs of a row depend on beside the patches visible: arguments of ``costs.count_costs``."""
        if self.prefill is None or self.selection is None:
            return {}
        facts = {"frozen_layers": sorted(self.selection.frozen_layers), "forgets": self.selection.forgets}
        # The list of scored layers goes on growing as the steps ask.
        return {**facts, **self.prefill.readers(row), "scored_layers": self.scored}

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self.layout, self.reading, self.joined = self.layout.take(rows), None, (None, None, None)
        if self.selection is not None and self.prefill is not None:
            self.selection.drop_rows(rows)
            self.prefill.drop_rows(rows)


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
        dropped = layout.keys_of(~kept, n_keys)
        visible = ~dropped if mask is None else ~dropped & mask[:, 0, -1]
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
