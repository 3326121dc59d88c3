"""A dense prefill that several decodes of the same prompts share.

A decode whose pruner acts from the first step after prefill on starts from a copy of the cache, and its pruner is shown
the prefill; the others make their own. Prefill is more than half of the cost of short traces.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from visionpulse_analysis.attention import intercept
from visionpulse_analysis.collecting import Record
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.options import Options
from visionpulse_analysis.decoding.run import Run
from visionpulse_analysis.models import VLM
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
    looked_at : bool
        Keep what pruners may look at in prefill: queries, keys and states of every layer.
    """

    def __init__(self, vlm: VLM, records: Sequence[Record], options: Options, looked_at: bool = True):
        self.vlm = vlm
        self.views: list[View] = []
        witness = _Witness(self.views) if looked_at else None
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
    """Keeps what a selection sees of a dense prefill, layer by layer."""

    views: list[View]

    def start(self, layout: Layout) -> Selection:
        return _Witnessing(layout, self.views)


class _Witnessing(Selection):
    def __init__(self, layout: Layout, views: list[View]):
        super().__init__(layout)
        self.views = views

    def observe_prefill(self, view: View) -> None:
        self.views.append(view)


class _Branch(Run):
    """A run that goes on from a trunk: its selection is shown the prefill, and it gets a copy of the cache."""

    def __init__(self, trunk: Trunk, records: Sequence[Record], options: Options):
        super().__init__(trunk.vlm, records, options, len(records))
        self.trunk = trunk

    def prefill(self, records: Sequence[Record]) -> tuple[Batch, torch.Tensor]:
        trunk = self.trunk
        self.current = batch = trunk.make(records, self.options)
        for group in batch.groups:
            if not group.selection.dense_prefill:
                return batch, batch.prefill()
            for view in trunk.views:
                group.selection.observe_prefill(view)
        trunk.lend(batch)
        batch.recorder.lend(*trunk.rows)
        for group in batch.groups:
            group.settle(batch.cache)
        return batch, trunk.logits.clone()
