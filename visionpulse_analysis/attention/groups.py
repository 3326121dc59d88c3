"""Rows that were prefilled together, and what one selection of a pruner decides about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from visionpulse_analysis.attention.cache import grows_in_place
from visionpulse_analysis.attention.prefill import Prefill
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.view import Layout, View, as_bias, kept_by


class Group:
    """Some rows of a batch, with the selection that was opened for them.

    A selection sees its own rows and their own keys, as if they were decoded alone: whatever joins or leaves the batch
    changes nothing for it.

    Parameters
    ----------
    layout : Layout
        Of these rows, prefilled together.
    selection : Selection
    renumbers : bool
        Whether positions are counted anew without what prefill drops.

    Attributes
    ----------
    rows : list of int
        Their places in the batch. first : the column of the batch that is column 0 here. step : counted from their own
        prefill. shown : bool [row, patch] or None for all, per layer: what this step leaves visible. biases : float
        [row, head or 1, patch] or None, per layer: what this step adds to the logits of the visible patches, 0 at
        others. scored : layers whose logits decode steps asked for in order to choose.
    """

    def __init__(self, layout: Layout, selection: Selection, renumbers: bool = False):
        self.layout, self.selection = layout, selection
        self.prefill = Prefill(layout, selection, renumbers)
        self.rows, self.first, self.step = list(range(len(layout.patches))), 0, 0
        self._index: tuple[list[int], dict[torch.device, torch.Tensor]] = ([], {})
        self.shown: list[torch.Tensor | None] = [None] * layout.n_layers
        self.biases: list[torch.Tensor | None] = [None] * layout.n_layers
        self.scored: list[int] = []
        self._joined: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._none: torch.Tensor | None = None  # what blind layers see, one object for all of them

    def check_layers(self, attention: list[int]) -> None:
        """Raise ValueError where the pruner chooses at a layer that has no softmax attention."""
        selections = [self.selection]
        while selections:
            selection = selections.pop()
            selections += getattr(selection, "parts", [])
            anchor = getattr(selection, "anchor", None)
            if anchor is not None and anchor not in attention:
                raise ValueError(
                    f"the pruner chooses at layer {anchor}, which has no softmax attention; set anchor_layer "
                    f"to one of {attention}"
                )

    def is_all_of(self, n_rows: int) -> bool:
        """Whether this group is the whole batch."""
        return self.first == 0 and self.rows == list(range(n_rows))

    def index(self, device: torch.device) -> torch.Tensor:
        """``rows`` int64 [row] on a device: a list would be brought there anew, and waited for, at every use."""
        if self._index[0] is not self.rows:
            self._index = self.rows, {}
        if device not in self._index[1]:
            self._index[1][device] = torch.tensor(self.rows, device=device)
        return self._index[1][device]

    def decide(self, batch: View) -> torch.Tensor | None:
        """The patches visible at this layer of a decode step: bool [row, patch] of this group, None for all.

        Sets ``shown`` and ``biases`` of the layer. Raises ValueError for what is neither a set nor a bias.
        """
        view = GroupView(batch, self)
        choice, left = self.selection.visible(view), view.shown
        if view.layer in self.selection.pattern.blind:
            if self._none is None or self._none.shape != self.layout.patches.shape:
                self._none = torch.zeros_like(self.layout.patches)
            choice = self._none
        if view.scored and view.layer not in self.scored:
            self.scored.append(view.layer)
        now = None if choice is None else kept_by(self._checked(choice, view), self.layout)
        if now is None or left is None:
            kept = left if now is None else now
        else:
            # The same object for the same two, so that layers which share them share the work.
            if self._joined is None or self._joined[0] is not now or self._joined[1] is not left:
                self._joined = now, left, now & left
            kept = self._joined[2]
        self.shown[batch.layer], self.biases[batch.layer] = kept, None
        if choice is not None and kept is not None and choice.dtype != torch.bool:
            bias = as_bias(choice).to(kept.device).float().masked_fill(~kept[:, None], 0.0)
            # A device is not waited for: there NaN and infinity are noticed by the probability of the next token.
            if bias.device.type == "cpu" and not bool((bias < torch.inf).all()):
                raise ValueError(
                    f"{type(self.selection).__name__} gave layer {view.layer} a bias of NaN or +inf at step "
                    f"{view.step}; 0 leaves a patch as it is, -inf hides it (logits are -inf where a patch "
                    "is masked: give a bias to the others only)"
                )
            self.biases[batch.layer] = bias
        return kept

    def _checked(self, choice: torch.Tensor, view: View) -> torch.Tensor:
        patches, heads = self.layout.patches.shape, view.query.shape[1]
        per_head = (patches[0], heads, patches[1])
        is_bias = choice.dtype.is_floating_point and choice.shape in (patches, per_head)
        if not is_bias and (choice.dtype != torch.bool or choice.shape != patches):
            raise ValueError(
                f"{type(self.selection).__name__} gave {choice.dtype} {list(choice.shape)} at layer {view.layer}, step "
                f"{view.step}; expected the patches visible, bool {list(patches)}, or a bias of their logits, float "
                f"{list(patches)} or {list(per_head)}"
            )
        return choice

    def gone(self, n_tokens: int) -> torch.Tensor | None:
        """How far what follows a prompt of ``n_tokens`` moves up: int64 [row, model_layer]; None where it stays."""
        if not self.prefill.renumbers:
            return None
        shown = [self.layout.patches if kept is None else kept for kept in self.prefill.kept]
        return torch.stack([self.layout.hidden_keys(kept, n_tokens).sum(dim=1) for kept in shown], dim=1)

    def edit_cache(self, cache: Any) -> None:
        """Let the pruner change what prefill has cached; raises ValueError for a cache that cannot be changed."""
        if not self.selection.edits_cache:
            return
        if not grows_in_place(cache):
            raise ValueError("the cache of this model cannot be edited, and the pruner merges keys; set merge='none'")
        for number, layer in enumerate(cache.layers):
            left = self.prefill.kept[number]
            left = self.layout.patches if left is None else left
            new = self.selection.edit_cache(number, layer.keys, layer.values, left)
            layer.keys, layer.values = new or (layer.keys, layer.values)

    def account(self, number: int) -> dict[str, Any]:
        """What the costs of the group's row ``number`` depend on beside the patches visible: see `count_costs`."""
        pattern = self.prefill.pattern
        facts: dict[str, Any] = {"frozen_layers": list(pattern.pattern.frozen), "forgets": self.selection.evicts}
        if self.selection.recomputes:
            facts["recomputes"] = True
        # The list of scored layers goes on growing as the steps ask.
        return {**facts, **pattern.account(number), **self.prefill.readers(number), "scored_layers": self.scored}

    def leave(self, gone: Sequence[int]) -> None:
        """Forget the rows at these places of the batch."""
        staying = [number for number, row in enumerate(self.rows) if row not in gone]
        if len(staying) == len(self.rows):
            return
        chosen = torch.tensor(staying, dtype=torch.int64, device=self.layout.patches.device)
        self.rows = [self.rows[number] for number in staying]
        self.layout, self._joined = self.layout.take(chosen), None
        self.selection.drop_rows(chosen)
        self.prefill.drop_rows(chosen)

    @property
    def most(self) -> int | None:
        """No row ever keeps more patches than this; None where that is not known beforehand."""
        return self.selection.most


class GroupView(View):
    """What the selection of a group sees of a layer that the whole batch runs; copied out only when asked for."""

    def __init__(self, batch: View, group: Group):
        self._batch, self._group = batch, group
        self.step, self.layer, self.layout = group.step, batch.layer, group.layout
        self.shown, self.scaling = group.prefill.kept[batch.layer], batch.scaling
        self._states = self._block = self._logits = self._whole = self._bias = self._logprobs = None
        self._is_all = group.is_all_of(len(batch.query))

    def _of_group(self, states: torch.Tensor, columns: bool) -> torch.Tensor:
        if self._is_all:
            return states
        own = states[self._group.index(states.device)]
        return own[:, :, self._group.first :] if columns else own

    @cached_property
    def query(self) -> torch.Tensor:
        return self._of_group(self._batch.query, columns=False)

    @cached_property
    def key(self) -> torch.Tensor:
        return self._of_group(self._batch.key, columns=True)

    @cached_property
    def value(self) -> torch.Tensor:
        return self._of_group(self._batch.value, columns=True)

    @cached_property
    def mask(self) -> torch.Tensor | None:
        given = self._batch.mask
        return None if given is None else self._of_group(given.transpose(2, 3), columns=True).transpose(2, 3)

    def states(self) -> torch.Tensor:
        return self._of_group(self._batch.states(), columns=False)

    def logprobs(self) -> torch.Tensor:
        return self._of_group(self._batch.logprobs(), columns=False)

    def logits(self) -> torch.Tensor:
        if self._logits is None:
            self._logits = self._hide(self._of_group(self._batch.logits(), columns=True))
        return self._logits
