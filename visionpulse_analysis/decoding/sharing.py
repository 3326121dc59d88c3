"""A dense prefill that several decodes of the same prompts share.

A decode whose pruner acts from the first step after prefill on starts from a copy of the cache, and its pruner is shown
the prefill while it goes by; the others make their own. Prefill is more than half of the cost of short traces.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from visionpulse_analysis.attention.routing import intercept
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.options import Options
from visionpulse_analysis.decoding.run import Run
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.view import Layout, View


class Trunk:
    """One batch after its dense prefill; every branch is a decode of all its rows.

    Parameters
    ----------
    vlm : VLM
    records : list of Record
        One for each row; only their prompts count.
    options : Options
        What is recorded; its pruner is left out.
    shown : list of Selection, optional
        Of the branches to come: they look at prefill while it goes by. Without it everything that any pruner may look
        at is kept for all branches: queries, keys and states of every layer.
    """

    def __init__(self, vlm: VLM, records: Sequence[Record], options: Options, shown: Sequence[Selection] | None = None):
        self.vlm = vlm
        self.views: list[View] = []
        look = self.views.append if shown is None else _show_to(shown)
        witness = None if shown is not None and not shown else _Witness(look)
        self.batch = Batch(vlm, records, replace(options, pruner=witness, execution="masked"))
        with torch.inference_mode(), intercept(vlm.model, self.batch.attend):
            self.logits = self.batch.prefill()
            self.rows = self.batch.recorder.take()

    def make(self, records: Sequence[Record], options: Options) -> Batch:
        """The batch of a branch, before it is put where prefill has left this one."""
        return Batch(self.vlm, records, options)

    def branch(self, records: Sequence[Record], options: Options) -> None:
        """Decode the rows of these records from here, each to its end; they need the prompts of the trunk's."""
        _Branch(self, records, options).finish()

    def lend(self, batch: Batch) -> None:
        """Put a batch of all rows where prefill has left this one, with a copy of the cache."""
        batch.cache, batch.position = copy.deepcopy(self.batch.cache), self.batch.position.clone()


@dataclass(frozen=True)
class _Witness(Pruner):
    """Tells what a selection sees of a dense prefill, layer by layer."""

    look: Callable[[View], object]

    def start(self, layout: Layout) -> Selection:
        return _Witnessing(layout, self.look)


class _Witnessing(Selection):
    def __init__(self, layout: Layout, look: Callable[[View], object]):
        super().__init__(layout)
        self.look = look

    def observe_prefill(self, view: View) -> None:
        self.look(view)


def _show_to(selections: Sequence[Selection]) -> Callable[[View], object]:
    def look(view: View) -> None:
        for selection in selections:
            selection.observe_prefill(view)

    return look


class _Branch(Run):
    """A run that goes on from a trunk: its selection is shown the prefill, and it gets a copy of the cache.

    made : its batch, which has seen the prefill of the trunk go by, if it can share it.
    """

    def __init__(self, trunk: Trunk, records: Sequence[Record], options: Options, made: Batch | None = None):
        super().__init__(trunk.vlm, records, options, len(records))
        self.trunk, self.made = trunk, made

    def prefill(self, records: Sequence[Record]) -> tuple[Batch, torch.Tensor]:
        trunk = self.trunk
        self.current = batch = trunk.make(records, self.options) if self.made is None else self.made
        self.made = None
        if not _can_share(batch):
            return batch, batch.prefill()
        for group in batch.groups:
            for view in trunk.views:
                group.selection.observe_prefill(view)
        trunk.lend(batch)
        batch.recorder.lend(trunk.rows)
        for group in batch.groups:
            group.edit_cache(batch.cache)
        return batch, trunk.logits.clone()


class _Made(Run):
    """A run of one batch, made beforehand, with a prefill of its own."""

    def __init__(self, batch: Batch):
        super().__init__(batch.vlm, batch.records, batch.options, len(batch.records))
        self.made = batch

    def prefill(self, records: Sequence[Record]) -> tuple[Batch, torch.Tensor]:
        self.current = self.made
        return self.made, self.made.prefill()


def _can_share(batch: Batch) -> bool:
    """Whether prefill is the dense one."""
    return all(group.selection.dense_prefill for group in batch.groups)


def run_together(vlm: VLM, runs: Sequence[tuple[Options, list[Record]]], batch_size: int) -> Iterator[list[Record]]:
    """Decode the same prompts in several ways, so many rows at a time, from one prefill wherever two can share it.

    Gives the records of each way in turn, when all of them are whole. What the pruners of all ways remember of a
    prefill is held at a time, and one copy of its cache.
    """
    count = len(runs[0][1])
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        with torch.inference_mode():
            made = [Batch(vlm, records[rows], options) for options, records in runs]
        shared = [batch for batch in made if _can_share(batch)]
        trunk = None
        if len(shared) > 1:
            shown = [group.selection for batch in shared for group in batch.groups]
            trunk = Trunk(vlm, runs[0][1][rows], runs[0][0], shown)
        waiting = deque(made)
        del made, shared
        for options, records in runs:
            batch = waiting.popleft()  # and with it what its pruner remembers
            if trunk is not None and _can_share(batch):
                run: Run = _Branch(trunk, records[rows], options, batch)
            else:
                run = _Made(batch)
            del batch
            run.finish()
            del run
            if start + batch_size >= count:
                yield records
