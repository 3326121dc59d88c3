"""A pruner inside the user's `generate`: what it chooses is hidden by the mask of each attention call."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad

from visionpulse_analysis.attending import Group
from visionpulse_analysis.attention import Call
from visionpulse_analysis.collecting import visible_of
from visionpulse_analysis.hooks import watch_layers
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.view import Layout, View

ELSEWHERE = "use vpa.decode, whose own loop can"


class MaskedPruning:
    """Carries out the choices of a pruner for the rows of one generation.

    Parameters
    ----------
    pruner : Pruner
    layout : Layout
    whole_prefill : bool
        Whether prefill reads the whole prompt at once.
    known_before : bool
        Whether it was known before prefill where the image tokens are.

    Raises
    ------
    ValueError
        The pruner needs what `generate` does not give it.
    """

    def __init__(self, pruner: Pruner, layout: Layout, whole_prefill: bool, known_before: bool):
        self.pruner, self.layout = pruner, layout
        if _asks_for_the_question(pruner):
            raise ValueError(
                f"{pruner.name} compares patches with the words of the question, and which tokens of a prompt these "
                f"are is not known inside generate: set prompt='text', which takes all its text, or {ELSEWHERE} tell"
            )
        if pruner.renumbers:
            raise ValueError(f"{pruner.name} counts positions anew, and generate counts its own: set renumber=False")
        self.group = Group(layout, pruner.start(layout))
        selection = self.group.selection
        if selection.recomputes:
            raise ValueError(f"{pruner.name} runs without a cache, which generate keeps: set per_step=False")
        if selection.settles:
            raise ValueError(f"{pruner.name} edits the cache after prefill, and inside generate it is not its own; "
                             f"{ELSEWHERE}")  # fmt: skip
        looks = type(selection).observe_prefill is not Selection.observe_prefill
        self.in_prefill = looks or not selection.dense_prefill
        if self.in_prefill and not whole_prefill:
            raise ValueError(
                f"{pruner.name} looks at the whole prompt while it is read, and generate reads this one in parts; "
                "leave out prefill_chunk_size and give no cache that holds a part of it"
            )
        if not selection.dense_prefill and not known_before:
            raise ValueError(
                f"{pruner.name} acts in prefill, and the configuration of this model does not say which token ids "
                f"stand for images, so that it is known only in the middle of it; {ELSEWHERE}"
            )
        self._hidden: list[tuple[Any, torch.Tensor | None]] = []  # what the layers of a step share

    def begin(self, prefill: bool, read: int) -> None:
        """A forward pass begins; raises ValueError where it reads more than one new token, ``read`` of them."""
        self._hidden = []
        if read > 1:
            raise ValueError(
                f"{self.pruner.name} chooses anew for each token, and generate reads {read} at a time here: leave out "
                "assistant_model and prompt_lookup_num_tokens, and keep use_cache=True, or watch without a pruner"
            )
        self.group.step += not prefill

    def check_layers(self, attention: list[int]) -> None:
        """Raise ValueError where the pruner chooses at a layer that has no softmax attention."""
        selections = [self.group.selection]
        while selections:
            selection = selections.pop()
            selections += getattr(selection, "parts", [])
            anchor = getattr(selection, "anchor", None)
            if anchor is not None and anchor not in attention:
                raise ValueError(
                    f"{self.pruner.name} chooses at layer {anchor}, which has no softmax attention; set anchor_layer "
                    f"to one of {attention}"
                )

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i continues what was row ``rows[i]``, int64 [row], as beams do."""
        rows = rows.to(self.layout.device)
        self.group.layout = self.group.layout.take(rows)
        self.group.selection.drop_rows(rows)
        self.group.prefill.drop_rows(rows)

    def states_of(self, model: Any) -> AbstractContextManager[None]:
        """Show the states between the layers to the pruner, inside the ``with`` block."""
        return watch_layers(model, self.group.prefill)

    def attend_prefill(self, call: Call, layer: int) -> tuple[Call, tuple[Any, ...]]:
        """One layer of prefill: the call under the mask that the pruner leaves, and what the kernel made of it."""
        length, prefill = call.query.shape[2], self.group.prefill
        # A static cache has columns behind the prompt that nothing may look at.
        key, value = (states[:, :, :length] for states in (call.key, call.value))
        given = None if call.mask is None else call.mask[..., :length]
        view = View(0, layer, self.layout, call.query, key, value, given, _scaling(call), prefill.shown,
                    prefill.states, prefill.block)  # fmt: skip
        self.group.shown[layer] = prefill.choose(view)
        call = replace(call, key=key, value=value, mask=prefill.mask(view))
        return call, prefill.attend(view, lambda values: replace(call, value=values).run())

    def redirect(self, layer: int) -> torch.Tensor | None:
        """Which patch's value each patch's weight of this layer of prefill goes to, as `Redirect.text`."""
        return self.group.prefill.redirects.get(layer)

    def hide(self, call: Call, layer: int, total: int) -> Call:
        """The call of a decode step without what the pruner hides at this layer."""
        columns = call.key.shape[2]
        first = max(0, total - columns)  # of a window
        key, value = (pad(states[:, :, : total - first], (0, 0, first, 0)) for states in (call.key, call.value))
        view = View(self.group.step, layer, self.layout, call.query, key, value, _padded(call, first, total),
                    _scaling(call))  # fmt: skip
        hidden = self._hide(self.group.decide(view), total)
        if hidden is None:
            return call
        hidden = pad(hidden[:, first:], (0, columns - (total - first)), value=True)[:, None, None].to(call.key.device)
        if call.mask is None:
            eager = call.kernel is call.eager
            mask = torch.zeros(hidden.shape, dtype=call.query.dtype, device=hidden.device) if eager else ~hidden
        else:
            mask = call.mask[..., :columns]
        if mask.dtype == torch.bool:
            return replace(call, mask=mask & ~hidden)
        return replace(call, mask=mask.masked_fill(hidden, torch.finfo(mask.dtype).min))

    def _hide(self, kept: torch.Tensor | None, total: int) -> torch.Tensor | None:
        """The positions to hide, bool [row, total]; None for none."""
        if kept is None:
            return None
        for known, hidden in self._hidden:
            if known is kept:
                return hidden
        dropped, most = self.layout.patches & ~kept, self.group.most
        # The device is not waited for where the pruner says that it always hides something.
        some = (most is not None and most < dropped.shape[1]) or bool(dropped.any())
        hidden = self.layout.hidden_keys(kept, total) if some else None
        self._hidden.append((kept, hidden))
        return hidden

    def visible(self, last: int) -> dict[str, torch.Tensor | None]:
        """What the step just made left visible, at the layer ``last`` and at each: see `visible_of`."""
        return visible_of(self.group, last)


def _scaling(call: Call) -> float:
    given = call.options.get("scaling")
    return call.query.shape[-1] ** -0.5 if given is None else given


def _padded(call: Call, first: int, total: int) -> torch.Tensor | None:
    """The mask of a decode step over all positions: bool or additive [row, 1, 1, total], or None for everything."""
    mask, seen = call.mask, total - first
    if mask is None:
        if first == 0:
            return None
        mask = torch.ones(len(call.query), 1, 1, seen, dtype=torch.bool, device=call.query.device)
    outside = False if mask.dtype == torch.bool else float(torch.finfo(mask.dtype).min)
    return pad(mask[:, :, -1:, :seen], (first, 0), value=outside)


def _asks_for_the_question(pruner: Any) -> bool:
    if getattr(pruner, "prompt", None) == "question":
        return True
    parts = [getattr(pruner, entry.name) for entry in fields(pruner)] if is_dataclass(pruner) else []
    return any(_asks_for_the_question(part) for part in parts if isinstance(part, Pruner))
