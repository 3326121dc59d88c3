"""The loop of decoding: any number of questions, so many rows at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visionpulse_analysis._util.progress import advance
from visionpulse_analysis.attention.cache import grows_in_place
from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.options import Options
from visionpulse_analysis.decoding.sampling import check_chosen
from visionpulse_analysis.decoding.tokens import end_ids
from visionpulse_analysis.decoding.trace_builder import Choice, Record, choice_of, visible_of
from visionpulse_analysis.decoding.transfer import Arriving
from visionpulse_analysis.models.loading import VLM

# On a GPU the results of a step are read while the next one runs: nothing waits for the device.
LAG = {"cuda": 1}


@dataclass
class Noted:
    """One step on its way into the records: which rows it has, and what the device computed for them."""

    records: list[Record]
    groups: list[list[int]]
    values: Arriving


class Run:
    """Decodes records, ``batch_size`` rows at a time, and ends each when its trace is whole.

    The place of a row that has ended is taken by the next record, so the batch stays full while there are any. What a
    row computes depends on its own prompt and seed only.
    """

    def __init__(self, vlm: VLM, records: Sequence[Record], options: Options, batch_size: int):
        self.vlm, self.options, self.batch_size = vlm, options, batch_size
        # Rows of one length need no padding; the longest first, so that what does not fit into memory fails at once.
        self.waiting = deque(sorted(enumerate(records), key=lambda numbered: -len(numbered[1].prompt.ids)))
        self.ends, self.stop_strings = end_ids(vlm), vlm.generation.stop_strings
        self.lag = LAG.get(vlm.model.device.type, 0)
        self.arriving: deque[Noted] = deque()
        self.current: Batch | None = None

    @torch.inference_mode()
    def finish(self) -> None:
        """Decode every record to its end token, or to the limit."""
        with intercept(self.vlm.model, self._attend):
            batch = None
            while (batch := self._fill(batch)) is not None:
                self.current = batch
                self._choose(batch, batch.step())
                advance("step")
            self._note(0)

    def prefill(self, records: Sequence[Record]) -> tuple[Batch, torch.Tensor]:
        """A batch of these records after prefill, and the logits float32 [row, word] of their first tokens."""
        self.current = Batch(self.vlm, records, self.options)
        return self.current, self.current.prefill()

    def _attend(self, call: Call) -> Any:
        if self.current is None:
            raise RuntimeError("the model was called before the first batch; something else uses it")
        return self.current.attend(call)

    def _fill(self, batch: Batch | None) -> Batch | None:
        """The batch for the next step: ended rows replaced or dropped; None when nothing is left to do."""
        while batch is None or len(batch.over) == len(batch.records):
            if not self.waiting:
                return None
            batch = self._begin(self.batch_size)
        over = batch.over
        if batch.recomputes or not grows_in_place(batch.cache):
            return batch
        if self.waiting and len(over) >= min(len(self.waiting), -(-self.batch_size // 8)):
            new = self._begin(len(over))
            batch.put(over[: len(new.records)], new)
        elif not self.waiting and 8 * len(over) >= len(batch.records):
            batch.keep([row for row in range(len(batch.records)) if row not in over])
        return batch

    def _begin(self, rows: int) -> Batch:
        """Prefill the next records, up to so many; together they keep the order given."""
        next_ones = [self.waiting.popleft() for _ in range(min(rows, len(self.waiting)))]
        records = [record for _, record in sorted(next_ones, key=lambda numbered: numbered[0])]
        for record in records:
            record.begin()
        batch, logits = self.prefill(records)
        for group in batch.groups:
            for number, row in enumerate(group.rows):
                batch.records[row].account = group.account(number)
        self._choose(batch, logits)
        return batch

    def _choose(self, batch: Batch, logits: torch.Tensor) -> None:
        """Choose the next tokens, and send the step just made to the records."""
        logprobs = batch.choose(logits)
        values: dict[str, torch.Tensor | None] = {"token": batch.tokens, "logprob": logprobs, **batch.recorder.take()}
        for number, group in enumerate(batch.groups):
            values |= {
                f"{name} {number}": value for name, value in visible_of(group, self.vlm.attention_layers[-1]).items()
            }
        self.arriving.append(Noted(list(batch.records), [group.rows for group in batch.groups], Arriving(values)))
        self._note(self.lag)

    def _note(self, behind: int) -> None:
        """Hand to the records all steps but the newest ``behind``, and end those that are whole."""
        while len(self.arriving) > behind:
            noted = self.arriving.popleft()
            values = noted.values.get()
            choices: list[Choice | None] = [None] * len(noted.records)
            for number, rows in enumerate(noted.groups if self.options.pruner is not None else ()):
                shown = {name: values[f"{name} {number}"] for name in ("kept", "counts", "budget", "mass")}
                for place, row in enumerate(rows):
                    choices[row] = choice_of(place, len(noted.records[row].prompt.grid), shown)
            for row, record in enumerate(noted.records):
                if not record.over:
                    self._add(record, row, values, choices[row])

    def _add(self, record: Record, row: int, values: dict[str, Any], choice: Choice | None) -> None:
        token, logprob = int(values["token"][row]), float(values["logprob"][row])
        check_chosen(logprob)
        record.finished = token in self.ends or record.completes(token, self.stop_strings)
        last = record.finished or len(record.steps) + 1 == self.options.max_new_tokens
        record.add(token, logprob, values, row, choice, last)
        if last:
            record.end()
            advance("trace")
