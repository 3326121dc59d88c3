"""What becomes of the attention calls of a step: rows are recorded, choices carried out, outputs left to the kernel.

Each gets the calls of one forward pass, behind which the sequence has ``total`` positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from visionpulse_analysis.attention.gathered import Execution, Gathered, Masked, Readings
from visionpulse_analysis.attention.groups import Group
from visionpulse_analysis.attention.patterns import by_heads
from visionpulse_analysis.attention.quantities import LayerAttention
from visionpulse_analysis.attention.recorder import Recorder
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.attention.rows import Query, RowReader
from visionpulse_analysis.pruners.view import Layout, View

Output = tuple[torch.Tensor, torch.Tensor | None]


class Look:
    """Records some queries of a forward pass, and changes nothing.

    Parameters
    ----------
    recorders : dict
        By the query's place among those of the pass; -1 is the newest.
    reader : RowReader
    prefill : bool
    """

    def __init__(self, recorders: Mapping[int, Recorder], reader: RowReader, prefill: bool):
        self.recorders, self.reader, self.prefill = recorders, reader, prefill

    def __call__(self, call: Call, total: int) -> Output:
        output = call.run()
        for place, recorder in self.recorders.items():
            if call.layer in recorder.layers:
                query = Query.of(call, place % call.query.shape[2], total)
                _record(recorder, self.reader, query, output, self.prefill)
        return output


class PrefillAttention:
    """The attention of a prefill in which a pruner looks on or acts; always simulated by masks.

    Parameters
    ----------
    recorder : Recorder
    reader : RowReader
    group : Group
        The whole batch.
    """

    def __init__(self, recorder: Recorder, reader: RowReader, group: Group):
        self.recorder, self.reader, self.group = recorder, reader, group

    def __call__(self, call: Call, total: int) -> Output:
        length, prefill, layer = call.query.shape[2], self.group.prefill, call.layer
        # A static cache has columns behind the prompt that nothing may look at.
        key, value = (states[:, :, :length] for states in (call.key, call.value))
        call = replace(call, key=key, value=value, mask=None if call.mask is None else call.mask[..., :length])
        query = Query.of(call, length - 1, total)
        view = _view(call, query, self.reader, True, 0, self.recorder.layout, prefill.shown, prefill.states,
                     prefill.block)  # fmt: skip
        self.group.shown[layer] = prefill.choose(view)
        mask = prefill.mask(view)
        call = call.under(mask)
        output = prefill.attend(view, lambda values: replace(call, value=values).run())
        redirect = prefill.redirects.get(layer)
        if layer in self.recorder.layers:
            query = Query.of(call, length - 1, total)
            inactive = prefill.pattern.pattern.inactive(layer)
            if redirect is not None or inactive:
                self.reader.unchecked(query, prefill=True)
            _record(self.recorder, self.reader, query, output, True, redirect, inactive)
        return output


class StepAttention:
    """The attention of the steps after prefill, for all rows of a batch.

    Parameters
    ----------
    recorder : Recorder
    reader : RowReader
    groups : list of Group
        The rows that a pruner acts on; none without a pruner.
    execution : "masked" or "gathered"
        Hide patches by a mask, or leave their keys and values unread.
    run : callable
        Runs a call whose every key is read.

    Attributes
    ----------
    logprobs : float32 [row, word] or None, of the step before; set before each step, for pruners that ask.
    """

    def __init__(
        self,
        recorder: Recorder,
        reader: RowReader,
        groups: Sequence[Group] = (),
        execution: Execution = "masked",
        run: Callable[[Call], Output] = Call.run_newest,
    ):
        self.recorder, self.reader, self.groups = recorder, reader, list(groups)
        self.layout = recorder.layout
        bounds = [group.most for group in self.groups if group.most is not None]
        most = max(bounds) if bounds and len(bounds) == len(self.groups) else None
        self.execution: Execution = execution
        self.most, self.run = most, run
        self.readings: dict[torch.device, Readings] = {}  # for layers on one device
        self._joined: tuple[list[torch.Tensor | None], torch.Tensor] | None = None
        self.logprobs: torch.Tensor | None = None
        self._entered: tuple[int, torch.Tensor] | None = None

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> None:
        """Take the states [row, 1, width] that enter a layer, for pruners that ask."""
        self._entered = layer, states

    def leave(self, layer: int, states: torch.Tensor) -> None:
        """Nothing is changed."""
        self._entered = None

    def __call__(self, call: Call, total: int) -> Output:
        recorded = call.layer in self.recorder.layers
        if not self.groups:
            output = self.run(call)
            if recorded:
                _record(self.recorder, self.reader, Query.of(call, 0, total), output, False)
            return output
        query = Query.of(call, 0, total)
        entered = self._entered
        states = None if entered is None or entered[0] != call.layer else entered[1]
        seen, inactive = _over_all(call, query), self.groups[0].selection.pattern.inactive(call.layer)
        view = _view(seen, query, self.reader, False, 1, self.layout, None, states, None, self.logprobs)
        kept = self._join([group.decide(view) for group in self.groups])
        bias = self._bias(view)
        reading = self._reading(view, kept, bias is not None)
        if isinstance(reading, Gathered):
            self._check_gathered(call, query)
            known = view.logits() if view.scored else None

            def gather(values: torch.Tensor, recorded: bool = False) -> Output:
                return reading.attend(call.query, call.key, values, call.scaling, known, recorded, bias)

            output, weights = gather(call.value, recorded)
            output = self._active_heads(call, query, (output, None), gather)[0]
            if weights is not None:
                if inactive:
                    weights[:, inactive, : reading.patches.shape[1]] = 0
                self.recorder.put_kept(view.layer, weights[..., : reading.patches.shape[1]], reading.patches)
                if self.recorder.quantities:
                    row = weights.new_zeros(*weights.shape[:2], total)
                    row.scatter_add_(2, reading.columns[:, None].expand_as(weights), weights)
                    _compute(self.recorder, self.reader, query, row, (output, None))
            return output, None
        if reading is not None or bias is not None:
            n_keys, device = view.key.shape[2], view.key.device
            hidden = (
                torch.zeros(len(view.key), n_keys, dtype=torch.bool, device=device)
                if reading is None
                else ~reading.visible
            )
            added = None if bias is None else _columns(self.layout.on(device).at_keys(bias, n_keys), call, query, 0.0)
            call = call.hiding(_columns(hidden, call, query, True), added)
        output = self.run(call)
        if recorded:
            shown = Query.of(call, 0, total)
            known = bias is None and not inactive and view.scored  # the pruner has computed them
            if known and self.reader.is_plain(query, False):
                logits = view.logits()
                hidden = None if reading is None else ~reading.visible[:, None].to(logits.device)
                self.reader.check(shown, False, output)
                row = logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
                self.recorder.put(view.layer, row)
                if self.recorder.quantities:
                    _compute(self.recorder, self.reader, shown, torch.softmax(row, dim=-1), output)
            else:
                _record(self.recorder, self.reader, shown, output, False, inactive=inactive)
        return self._active_heads(call, query, output, lambda values: self.run(replace(call, value=values)))

    def _active_heads(self, call: Call, query: Query, output: Output, attend: Callable[[torch.Tensor], Output]) -> Any:
        """The output without what inactive heads read of pictures."""
        pattern = self.groups[0].selection.pattern
        if not pattern.inactive(call.layer):
            return output
        images = self.layout.image_keys(query.total)
        return by_heads(pattern, call.layer, output, call.value, attend, _columns(images, call, query, False))

    def _reading(self, view: View, kept: torch.Tensor | None, biased: bool) -> Masked | Gathered | None:
        if kept is None:
            return None
        device = view.key.device
        if device not in self.readings:
            self.readings[device] = Readings(self.layout.on(device), self.execution, self.most)
        # Other masks than boolean ones are the call's own and stay; what is hidden is added to them.
        mask = view.mask if view.mask is not None and view.mask.dtype == torch.bool else None
        return self.readings[device].of(kept, mask, view.key.shape[2], biased)

    def _bias(self, view: View) -> torch.Tensor | None:
        """What all groups add to the logits of the patches, put together: float32 [row, head or 1, patch]."""
        given = [(group, bias) for group in self.groups if (bias := group.biases[view.layer]) is not None]
        if not given:
            return None
        patches = self.layout.patches
        whole = torch.zeros(
            len(patches), max(bias.shape[1] for _, bias in given), patches.shape[1], device=patches.device
        )
        for group, bias in given:
            whole[group.index(whole.device), :, : bias.shape[2]] = bias
        return whole.to(view.key.device)

    def _check_gathered(self, call: Call, query: Query) -> None:
        """Raise ValueError where what is gathered would not be what the model computes."""
        added = call.mask is not None and call.mask.dtype != torch.bool
        if added or query.first or call.key.shape[2] != query.total or not self.reader.is_plain(query, False):
            raise ValueError(
                f"layer {call.layer} ({type(call.module).__name__}) does not compute a plain softmax over the whole "
                "cache (capped logits, sinks, biases, added masks, or a window), and gathered execution knows no "
                "other: decode with execution='masked'"
            )

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


class OwnView(View):
    """A view of a layer whose rows only the model's own eager function gives (caps, biases)."""

    query_alone: Query

    def logits(self) -> torch.Tensor:
        if self._logits is None:
            weights = self.query_alone.over_all(self.query_alone.eager().float(), 0.0).to(self.layout.device)
            missing = float((1 - weights.sum(dim=-1)).abs().max())
            # Beyond the rounding of weights in the model's type; sinks take a share that belongs to no key.
            if missing > 4 * torch.finfo(self.query.dtype).eps * weights.shape[-1] ** 0.5:
                raise ValueError(
                    f"layer {self.layer} of this model has attention sinks, which take {missing:.2g} of the softmax "
                    "and are no keys: a pruner that ranks logits there would not be the one of its paper; choose an "
                    "anchor layer without sinks, or record without a pruner"
                )
            self._logits = self._hide(weights.log())
        return self._logits

    def query_logits(self, queries: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            f"layer {self.layer} of this model has capped or biased logits, which are known here for the newest query "
            "only; use a pruner that does not look at others"
        )


def _view(call: Call, query: Query, reader: RowReader, prefill: bool, step: int, layout: Layout, *more: Any) -> View:
    """What a pruner sees of a call whose newest query is ``query``."""
    plain = reader.is_plain(query, prefill)
    kind = View if plain else OwnView
    view = kind(step, call.layer, layout, call.query, call.key, call.value, call.mask, call.scaling, *more)
    if isinstance(view, OwnView):
        view.query_alone = query
    return view


def _over_all(call: Call, query: Query) -> Call:
    """The call of a step as if the cache held every key of the sequence and none behind it."""
    first, total = query.first, query.total
    if not first and call.key.shape[2] == total:
        return call
    mask, seen = call.mask, total - first
    if mask is None and first:
        mask = torch.ones(len(call.query), 1, 1, seen, dtype=torch.bool, device=call.query.device)
    if mask is not None:
        outside = False if mask.dtype == torch.bool else float(torch.finfo(mask.dtype).min)
        mask = pad(mask[:, :, -1:, :seen], (first, 0), value=outside)
    key, value = (pad(states[:, :, :seen], (0, 0, first, 0)) for states in (call.key, call.value))
    return replace(call, key=key, value=value, mask=mask)


def _columns(over_all: torch.Tensor, call: Call, query: Query, behind: Any) -> torch.Tensor:
    """What is said of every position, [row, ..., total], at the columns of a call.

    Those of another sequence, which come first, are left as they are; those of a static cache that come ``behind`` the
    newest are filled with that.
    """
    own = pad(over_all[..., max(0, query.first) :], (max(0, -query.first), 0), value=0)
    left = call.key.shape[2] - own.shape[-1]
    return pad(own, (0, left), value=behind) if left else own


def _record(
    recorder: Recorder, reader: RowReader, query: Query, output: Output, prefill: bool,
    redirect: torch.Tensor | None = None, inactive: Sequence[int] = (),
) -> None:  # fmt: skip
    row, is_logits = reader.read(query, prefill, output)
    if inactive:
        row, is_logits = torch.softmax(row, dim=-1) if is_logits else row.clone(), False
        images = recorder.layout.on(row.device).image_keys(row.shape[2])
        row[:, inactive] = row[:, inactive].masked_fill(images[:, None], 0)
    (recorder.put if is_logits else recorder.put_weights)(query.call.layer, row, redirect)
    if recorder.quantities:
        _compute(recorder, reader, query, torch.softmax(row, dim=-1) if is_logits else row, output, redirect)


def _compute(
    recorder: Recorder, reader: RowReader, query: Query, weights: torch.Tensor, output: Output,
    redirect: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Work out the quantities asked for of a query whose row is ``weights`` float32 [row, head, total]."""
    recorder.compute(LayerAttention.of(query, weights, output[0], recorder.layout, reader.memory, redirect))
