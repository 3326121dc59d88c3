"""The attention functions used while decoding: rows are recorded, choices carried out, outputs left to the library."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visionpulse_analysis.attending.groups import Group
from visionpulse_analysis.attending.reading import Execution, Gathered, Masked, Readings
from visionpulse_analysis.attending.recorder import Recorder
from visionpulse_analysis.attention import newest, stock
from visionpulse_analysis.pruners.logits import newest_logits
from visionpulse_analysis.pruners.view import View


class PrefillAttention:
    """The attention function of prefill; a pruner that acts there is always simulated by masks.

    Parameters
    ----------
    recorder : Recorder
    group : Group, optional
        The whole batch, where a pruner looks on or acts.
    """

    def __init__(self, recorder: Recorder, group: Group | None = None):
        self.recorder, self.group = recorder, group

    def __call__(self, module, query, key, value, attention_mask, *, scaling=None, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        refuse_inexact(options)
        layer, layout, recorded = module.layer_idx, self.recorder.layout, module.layer_idx in self.recorder.layers
        if self.group is None:
            if recorded:
                self.recorder.put(layer, newest_logits(query, key, attention_mask, scaling))
            return stock(module, query, key, value, attention_mask, scaling=scaling, **options)
        prefill = self.group.prefill
        basic = (0, layer, layout, query, key, value, attention_mask, scaling)
        view = View(*basic, prefill.shown, prefill.states, prefill.block)
        kept = self.group.shown[layer] = prefill.choose(view)
        logits = view.logits() if recorded else None
        mask = prefill.mask(view)
        output = prefill.attend(view, lambda v: stock(module, query, key, v, mask, scaling=scaling, **options))
        if logits is not None:
            if kept is not None:
                logits = logits.masked_fill(layout.hidden_keys(kept, key.shape[2])[:, None], -torch.inf)
            self.recorder.put(layer, logits, prefill.redirects.get(layer))
        return output


class StepAttention:
    """The attention function of the steps after prefill, for all rows of a batch.

    Parameters
    ----------
    recorder : Recorder
    groups : list of Group
        The rows that a pruner acts on; none without a pruner.
    execution : "masked" or "gathered"
        Hide patches by a mask, or leave their keys and values unread.
    """

    def __init__(self, recorder: Recorder, groups: Sequence[Group] = (), execution: Execution = "masked"):
        self.recorder, self.groups = recorder, list(groups)
        self.layout = recorder.layout
        bounds = [group.most for group in self.groups if group.most is not None]
        most = max(bounds) if bounds and len(bounds) == len(self.groups) else None
        self.execution: Execution = execution
        self.most = most
        self.readings: dict[torch.device, Readings] = {}  # for layers on one device
        self._joined: tuple[list[torch.Tensor | None], torch.Tensor] | None = None

    def __call__(self, module, query, key, value, attention_mask, *, scaling=None, **options):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        refuse_inexact(options)
        view = View(1, module.layer_idx, self.layout, query, key, value, attention_mask, scaling)
        recorded = view.layer in self.recorder.layers
        reading = self._reading(view) if self.groups else None
        if isinstance(reading, Gathered):
            known = view.logits() if view.scored else None
            output, weights = reading.attend(query, key, value, scaling, known, recorded)
            if weights is not None:
                self.recorder.put_kept(view.layer, weights, reading.patches)
            return output, None
        mask = attention_mask if reading is None else reading.visible[:, None, None]
        if recorded:
            logits = view.logits()
            hidden = None if reading is None else ~reading.visible[:, None].to(logits.device)
            self.recorder.put(view.layer, logits if hidden is None else logits.masked_fill(hidden, -torch.inf))
        return newest(module, query, key, value, mask, scaling=scaling, **options)

    def _reading(self, view: View) -> Masked | Gathered | None:
        kept = self._join([group.decide(view) for group in self.groups])
        if kept is None:
            return None
        device = view.key.device
        if device not in self.readings:
            self.readings[device] = Readings(self.layout.on(device), self.execution, self.most)
        return self.readings[device].of(kept, view.mask, view.key.shape[2])

    def _join(self, decided: list[torch.Tensor | None]) -> torch.Tensor | None:
        """What all groups see, put together: bool [row, patch], None for all; the same object for the same parts."""
        if all(kept is None for kept in decided):
            return None
        whole, first = self.layout.patches, decided[0]
        # The last rows of a batch may have fewer patches than rows that have left it.
        if self.groups[0].is_all_of(len(whole)) and first is not None and first.shape == whole.shape:
            return first
        if self._joined is None or any(a is not b for a, b in zip(self._joined[0], decided, strict=True)):
            whole = whole.clone()
            for group, kept in zip(self.groups, decided, strict=True):
                if kept is not None:
                    whole[group.index(whole.device), : kept.shape[1]] = kept
            self._joined = decided, whole
        return self._joined[1]


def refuse_inexact(options: dict) -> None:
    """Raise ValueError for attention variants whose rows the recorder would get wrong."""
    for name, meaning in (
        ("softcap", "soft-capped logits"),
        ("s_aux", "sink logits"),
        ("position_bias", "position bias"),
    ):
        if options.get(name) is not None:
            raise ValueError(f"this model uses {meaning} ({name}); its attention cannot be recorded exactly")
