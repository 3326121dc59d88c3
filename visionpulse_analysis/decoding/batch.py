"""Rows that take their steps together: prefill, one step, and rows that join, leave or change places."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from visionpulse_analysis.attention import Group, Look, PrefillAttention, Recorder, RowReader, StepAttention
from visionpulse_analysis.attention.cache import GrowingLayer, grows_in_place, make_cache
from visionpulse_analysis.attention.patterns import sliced_mlps
from visionpulse_analysis.attention.prefill import check_one_dimensional, renumbered
from visionpulse_analysis.attention.routing import Call, intercept, watch_layers
from visionpulse_analysis.decoding.options import Options
from visionpulse_analysis.decoding.patch_gradients import relevance
from visionpulse_analysis.decoding.prompt_text import question_tokens
from visionpulse_analysis.decoding.sampling import Chooser
from visionpulse_analysis.decoding.tokens import end_ids, pad_id
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.models.families import Prompt, in_columns
from visionpulse_analysis.models.generation_config import Rules
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.pattern import ORDINARY
from visionpulse_analysis.pruners.view import Layout
from visionpulse_analysis.traces.frames import NO_MAP

COLUMNS = ("places", "other_places", "starts")  # of a layout: what moves with the columns of the cache
ROOM = 256  # columns for which the padding mask is made beforehand


def asks_for_map(selection: Selection) -> str | None:
    """Why it must be known where patches lie on their pictures, with what would do without; None where it need not."""
    if selection.pattern.window:
        return "patches are to see their neighbours only; say window=None"
    return selection.by_place


def check_map(selection: Selection, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError where rows and columns of patches are needed and are not known."""
    unknown = [prompt.map for prompt in prompts if prompt.map.startswith(NO_MAP)]
    if unknown and (why := asks_for_map(selection)):
        raise ValueError(f"there is {unknown[0]}, and {why}")


class Batch:
    """A left-padded batch.

    All rows share the columns of one cache: row ``i`` has its first token in column ``starts[i]``, and its newest in
    the last of ``width`` columns. Call :meth:`prefill` once, then, with ``tokens`` int64 [row] set, :meth:`step`.

    Parameters
    ----------
    vlm : VLM
    records : list of Record
        One per row.
    options : Options
    """

    def __init__(self, vlm: VLM, records: Sequence[Record], options: Options):
        self.vlm, self.options, self.records = vlm, options, list(records)
        lengths = [len(record.prompt.ids) for record in self.records]
        self.width = max(lengths)
        self.starts = [self.width - length for length in lengths]
        self.chosen = [0] * len(self.records)  # tokens, per row
        self.layout = self._layout([record.prompt for record in self.records])
        pruner = options.pruner
        selection = (Pruner() if pruner is None else pruner).start(self.layout)
        self.groups = [Group(self.layout, selection, renumbers=bool(pruner and pruner.renumbers))]
        if pruner is None and vlm.pattern == ORDINARY:
            self.groups = []
        for group in self.groups:
            group.check_layers(vlm.attention_layers)
        check_map(selection, [record.prompt for record in self.records])
        self.chooser = Chooser(options.sample, self.layout.seeds)
        self.rules = self._rules()
        self.cache = make_cache(vlm.model)
        if pruner is not None and pruner.renumbers:
            check_one_dimensional(vlm.name, vlm.model, vlm.family.mrope, vlm.windowed_layers)
            if not grows_in_place(self.cache):
                raise ValueError(
                    f"{vlm.name} needs a cache of its own kind, which cannot be changed; say renumber=False"
                )
        self.recorder = Recorder(self.layout, options.layers, options.heads, options.record)
        self.reader = RowReader()
        self.attention: Look | PrefillAttention | StepAttention | None = None
        self.gone: torch.Tensor | None = None  # int64 [row, model_layer], see Group.gone
        self.answers: list[torch.Tensor] = []  # int64 [row] per step, where there is no cache
        self.tokens = self.position = torch.zeros(0, dtype=torch.int64)
        self.logprobs: torch.Tensor | None = None  # float32 [row, word] of the step before, where a pruner may ask
        # A known model whose layers all see the whole past takes the mask as it is; others make one per kind of layer.
        self.takes_mask = grows_in_place(self.cache) and vlm.sees_everything and vlm.family.known
        self.real: torch.Tensor | None = None
        self.newest_alone = newest_logits_only(vlm.model, 1)

    def _layout(self, prompts: list[Prompt]) -> Layout:
        vlm, rows = self.vlm, len(prompts)
        question = torch.zeros(rows, self.width, dtype=torch.bool)
        if self.options.pruner is not None:
            for row, (start, prompt) in enumerate(zip(self.starts, prompts, strict=True)):
                question[row, start + question_tokens(vlm.tokenizer, prompt)] = True
        layout = Layout(
            **in_columns(prompts, self.starts),
            n_layers=vlm.n_layers,
            default_anchor=vlm.default_anchor,
            seeds=[record.seed for record in self.records],
            question=question,
            relevance=self._relevance,
            hindsight=self._hindsight,
            model=lambda: vlm.weights_hash,
            pattern=vlm.pattern,
        )
        return layout.on(vlm.model.device)

    def _dense(self, options: Options) -> tuple[Batch, torch.Tensor]:
        """The same rows after a dense prefill, for what is chosen in hindsight, and logits of their first tokens."""
        batch = Batch(self.vlm, self.records, options)
        with intercept(self.vlm.model, batch.attend):
            return batch, batch.prefill()

    def _hindsight(self, layer: int) -> torch.Tensor:
        """Head-mean attention of a layer, mean over the steps after prefill of the dense traces: float32 [row, patch].

        The traces are those of the same seeds and sampling; zero where a trace ends with its first token.
        """
        given = self.options
        dense, logits = self._dense(Options([layer], None, None, "masked", given.sample, given.max_new_tokens))
        ends = torch.tensor(sorted(end_ids(self.vlm)), device=self.vlm.model.device)
        dense.choose(logits)
        total = torch.zeros(dense.layout.patches.shape, device=dense.layout.device)
        steps = torch.zeros(len(self.records), 1, device=total.device)
        going = ~torch.isin(dense.tokens, ends)
        with intercept(self.vlm.model, dense.attend):
            for _ in range(given.max_new_tokens - 1):
                if not going.any():
                    break
                logits = dense.step()
                total += dense.recorder.take()["attention"][:, 0].float() * going[:, None]
                steps += going[:, None]
                dense.choose(logits)
                going &= ~torch.isin(dense.tokens, ends)
        return total / steps.clamp(min=1)

    def _rules(self) -> list[Rules]:
        """What the model's generation configuration asks of each row; empty where it asks nothing."""
        asked = self.vlm.generation
        if not asked.shapes_logits:
            return []
        limit, device = self.options.max_new_tokens, self.vlm.model.device
        return [asked.rules(record.prompt.ids, limit, device) for record in self.records]

    def _relevance(self, tokens: int) -> torch.Tensor:
        """How much the first tokens of the dense answers depend on each patch: float32 [row, patch]."""
        limit = min(tokens, self.options.max_new_tokens)
        dense, logits = self._dense(Options([], None, max_new_tokens=limit))
        answers, ends = [], end_ids(self.vlm)
        dense.choose(logits)
        with intercept(self.vlm.model, dense.attend):
            while len(answers) < limit - 1:
                answers.append(dense.tokens)
                dense.choose(dense.step())
        rows = torch.stack([*answers, dense.tokens], dim=1).tolist()
        cut = [next((n for n, token in enumerate(row, 1) if token in ends), limit) for row in rows]
        found = [
            relevance(self.vlm, record.prompt, torch.tensor(row[:length]))
            for record, row, length in zip(self.records, rows, cut, strict=True)
        ]
        return pad_sequence(found, batch_first=True).to(self.vlm.model.device)

    def prefill(self) -> torch.Tensor:
        """Read the prompts: logits float32 [row, word] of the first token."""
        return self._read([record.prompt for record in self.records])

    def _read(self, prompts: list[Prompt]) -> torch.Tensor:
        inputs = self.vlm.to_device(self.vlm.family.batch(prompts, pad_id(self.vlm)))
        position = self.vlm.family.positions(self.vlm.model, inputs)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        self.position = position.view(-1, *ids.shape)[:, :, -1].amax(dim=0) + 1
        group = self.groups[0] if self.groups else None
        if group is None:
            self.attention = Look({-1: self.recorder}, self.reader, prefill=True)
        else:
            self.attention = PrefillAttention(self.recorder, self.reader, group)
        with ExitStack() as hooks:
            if group is not None:
                hooks.enter_context(watch_layers(self.vlm.model, group.prefill))
                hooks.enter_context(sliced_mlps(self.vlm.model, group.selection.pattern, group.layout))
                if group.prefill.renumbers:
                    # All families of such positions count all rows from the same number.
                    hooks.enter_context(self._counted_anew(group, int(position[0, self.starts[0]])))
            logits = self.forward(ids, mask, position, **inputs)
        if group is not None:
            group.edit_cache(self.cache)
            self.gone = group.gone(ids.shape[1])
        return logits

    def _counted_anew(self, group: Group, first: int) -> AbstractContextManager[None]:
        """Positions of a prefill whose first token stands at ``first``."""
        prefill = group.prefill

        def positions(layer: int) -> torch.Tensor | None:
            found = prefill.positions(layer)
            return None if found is None else found + first

        return renumbered(self.vlm.model, positions, prefill.ran_with_old)

    @property
    def recomputes(self) -> bool:
        """Whether every step reads the whole sequence anew."""
        return any(group.selection.recomputes for group in self.groups)

    def _read_again(self) -> torch.Tensor:
        """Read prompts and answers so far as one long prompt: logits float32 [row, word] of the next tokens."""
        [group], pruner = self.groups, self.options.pruner
        if pruner is None:
            raise RuntimeError("a batch without a pruner has a cache")
        self.answers.append(self.tokens)
        answers = torch.stack(self.answers, dim=1).cpu()
        self.width += 1
        self.layout = replace(self.layout, question=pad(self.layout.question, (0, 1)))
        again = Group(self.layout, pruner.start(self.layout), pruner.renumbers)
        again.step, self.groups = group.step + 1, [again]
        self.cache = make_cache(self.vlm.model)
        return self._read([r.prompt.answered(ids) for r, ids in zip(self.records, answers, strict=True)])

    def step(self) -> torch.Tensor:
        """Read ``tokens``: logits float32 [row, word] of the next ones."""
        if self.recomputes:
            return self._read_again()
        if not isinstance(self.attention, StepAttention):
            self.attention = StepAttention(self.recorder, self.reader, self.groups, self.options.execution)
        for group in self.groups:
            group.step += 1
        self.width += 1
        gone, position = self.gone, self.position
        # Whatever prefill dropped in a layer has left its place to what comes behind.
        with ExitStack() as hooks:
            if gone is not None:
                hooks.enter_context(renumbered(self.vlm.model, lambda n: (position - gone[:, n])[:, None]))
            if self.groups:
                self.attention.logprobs = self.logprobs
                hooks.enter_context(watch_layers(self.vlm.model, self.attention, needed=False))
            logits = self.forward(self.tokens[:, None], self._mask(), position[:, None])
        self.position = self.position + 1
        return logits

    def attend(self, call: Call) -> Any:
        """What becomes of an attention call while this batch runs."""
        if self.attention is None:
            raise RuntimeError("the batch is neither in prefill nor in a step; call prefill() or step()")
        return self.attention(call, self.width)

    def forward(self, ids: torch.Tensor, mask: Any, position: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the model on new tokens; logits float32 [row, word] of the newest."""
        out = self.vlm.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position.expand(3, -1, -1) if self.vlm.family.mrope and position.ndim == 2 else position,
            past_key_values=self.cache,
            use_cache=True,
            **self.newest_alone,
            **inputs,
        )
        return out.logits[:, -1].float().to(ids.device)

    def _mask(self) -> torch.Tensor | None:
        """Which columns the newest query sees; None where that is all of them."""
        if self.takes_mask and not any(self.starts):
            return None
        if self.real is None or self.real.shape[1] < self.width:
            device = self.position.device
            columns = torch.arange(self.width + ROOM, device=device)
            self.real = columns[None] >= torch.tensor(self.starts, device=device)[:, None]
        real = self.real[:, : self.width]
        return real[:, None, None] if self.takes_mask else real

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose the next tokens; returns their logarithmic probabilities float32 [row], by the model's own logits."""
        shaped = [rules(row) for rules, row in zip(self.rules, logits.split(1), strict=True)] if self.rules else []
        self.tokens = self.chooser(torch.cat(shaped) if shaped else logits)
        for rules, token in zip(self.rules, self.tokens.split(1), strict=bool(self.rules)):
            rules.add(token)
        self.chosen = [count + 1 for count in self.chosen]
        logprobs = torch.log_softmax(logits, dim=1)
        self.logprobs = logprobs if self.groups else None
        return logprobs.gather(1, self.tokens[:, None])[:, 0]

    @property
    def over(self) -> list[int]:
        """Rows whose trace has ended, or has as many tokens as it may have."""
        limit = self.options.max_new_tokens
        return [row for row, record in enumerate(self.records) if record.finished or self.chosen[row] >= limit]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        chosen = torch.tensor(rows, device=self.tokens.device)
        self._leave([row for row in range(len(self.records)) if row not in rows])
        for group in self.groups:
            group.rows = [rows.index(row) for row in group.rows]
        self.rules = [self.rules[row] for row in rows] if self.rules else []
        for name in ("records", "starts", "chosen"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])
        self.tokens, self.position = self.tokens[chosen], self.position[chosen]
        self.gone = None if self.gone is None else self.gone[chosen]
        self.logprobs = None if self.logprobs is None else self.logprobs[chosen]
        self.cache.batch_select_indices(chosen)
        self.chooser.drop_rows(chosen)
        self._rearranged(self.layout.take(chosen))

    def put(self, rows: Sequence[int], other: Batch) -> None:
        """Let the rows of ``other``, whose first tokens are chosen, take the places of these rows."""
        # Rows are aligned at their newest token: the new ones end in the last column like all others, and begin where
        # their own length says. Old keys before that stay in the cache: `starts` hides them, as it hides padding.
        if other.width > self.width:
            self._shift(other.width - self.width)
        shift = self.width - other.width
        self._leave(rows)
        chosen = torch.tensor(rows, device=self.tokens.device)
        for mine, others in zip(self._layers, other._layers, strict=True):
            mine.put_rows(chosen, others)
        self.tokens[chosen], self.position[chosen] = other.tokens, other.position
        if self.gone is not None and other.gone is not None:
            self.gone[chosen] = other.gone
        if self.logprobs is not None and other.logprobs is not None:
            self.logprobs = self.logprobs.index_copy(0, chosen, other.logprobs)
        for place, row in enumerate(rows):
            self.records[row], self.chosen[row] = other.records[place], other.chosen[place]
            self.starts[row] = other.starts[place] + shift
            self.chooser.generators[row] = other.chooser.generators[place]
            if self.rules:
                self.rules[row] = other.rules[place]
        for group in other.groups:
            group.rows, group.first = [rows[row] for row in group.rows], group.first + shift
            self.groups.append(group)
        self._rearranged(_joined(self.layout, chosen, other.layout, shift))
        # Columns that only padding is left in are forgotten.
        running = [start for row, start in enumerate(self.starts) if row not in self.over]
        self._shift(-min([group.first for group in self.groups] or running or [0]))

    @property
    def _layers(self) -> list[GrowingLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, GrowingLayer)]

    def _shift(self, columns: int) -> None:
        """Put so many empty columns before the first one, or take some away."""
        if columns == 0:
            return
        for layer in self._layers:
            layer.shift(columns)
        self.width += columns
        self.starts = [max(0, start + columns) for start in self.starts]
        for group in self.groups:
            group.first += columns
        moved = {name: (getattr(self.layout, name) + columns).clamp(min=0) for name in COLUMNS}
        self._rearranged(replace(self.layout, **moved))

    def _leave(self, rows: Sequence[int]) -> None:
        for group in self.groups:
            group.leave(rows)
        self.groups = [group for group in self.groups if group.rows]

    def _rearranged(self, layout: Layout) -> None:
        self.layout, self.attention, self.real = layout, None, None
        self.recorder = Recorder(layout, self.options.layers, self.options.heads, self.options.record)


def newest_logits_only(model: Any, count: int) -> dict[str, int]:
    """What tells a model to compute the logits of the newest ``count`` tokens alone; nothing, where it gives all."""
    return {"logits_to_keep": count} if "logits_to_keep" in signature(model.forward).parameters else {}


def _joined(layout: Layout, rows: torch.Tensor, other: Layout, shift: int) -> Layout:
    """The layout of a batch in which ``other``, its columns moved by ``shift``, takes the places of ``rows``."""
    joined = {}
    for name in ("patches", "pieces", "others", *COLUMNS):
        mine, new = getattr(layout, name), getattr(other, name)
        new = new + shift if name in COLUMNS else new
        if mine.ndim == 2:
            width = max(mine.shape[1], new.shape[1])
            mine, new = (pad(values, (0, width - values.shape[1])) for values in (mine, new))
        joined[name] = mine.index_copy(0, rows, new)
    seeds = list(layout.seeds)
    for row, seed in zip(rows.tolist(), other.seeds, strict=True):
        seeds[row] = seed
    # Only prefill asks where the question stands.
    return replace(layout, **joined, seeds=seeds, question=layout.patches[:, :0])
