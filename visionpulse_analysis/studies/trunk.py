"""A dense prefill that the arms of a comparison share.

An arm whose pruner acts from the first decode step on starts from a copy of the cache, and its pruner is shown the
prefill; the others make their own. Prefill is more than half of the cost of short traces.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attention import intercept
from visionpulse_analysis.collecting import Record
from visionpulse_analysis.decoding import Batch, Options, Run
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.view import Layout, View
from visionpulse_analysis.sampling import Sample as Sampling
from visionpulse_analysis.studies.collect import key_of
from visionpulse_analysis.studies.kept import cache_folder, keep, recall, state_of
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.traces import Trace


class Trunk:
    """One batch after its dense prefill; every branch is a decode of all its rows."""

    def __init__(self, vlm: VLM, samples: Sequence[Sample], max_new_tokens: int):
        self.vlm, self.max_new_tokens = vlm, max_new_tokens
        self.prompts = [vlm.prompt(one.image, one.question) for one in samples]
        self.views: list[View] = []
        self.hindsight: dict[tuple[Any, ...], torch.Tensor] = {}  # what the dense traces attended to, see _Rows
        self.samples = samples
        self.state = state_of(vlm, _Rows, Trunk)
        self.batch = Batch(vlm, self.records([0] * len(samples)), self.options(_Witness(self.views), None))
        with torch.inference_mode(), intercept(vlm.model, self.batch.attend):
            self.logits = self.batch.prefill()

    def branch(self, pruner: Pruner | None, sample: Sampling | None, seeds: list[int]) -> list[Trace]:
        """Decode all rows from here, under a pruner or dense."""
        records = self.records(seeds)
        _Branch(self, records, self.options(pruner, sample)).finish()
        return [record.trace for record in records if record.trace is not None]

    def first_choice(self, pruner: Pruner, seeds: list[int]) -> list[np.ndarray]:
        """What is left where the pruner first drops anything, by the dense states up to there: per row bool [patch]."""
        [group] = _Rows(self, self.records(seeds), self.options(pruner, None)).groups
        with torch.inference_mode():
            kept = self.batch.layout.patches
            for view in self.views:
                now = group.selection.visible_prefill(view)
                if now is not None and not torch.equal(now, kept):
                    kept = now
                    break
        return self._by_row(kept)

    def relevance(self, tokens: int) -> list[np.ndarray]:
        """See :func:`relevance`: per row float32 [patch]."""
        return self._by_row(
            _Rows(self, self.records([0] * len(self.prompts)), self.options(None, None))._relevance(tokens)
        )

    def lend(self, batch: Batch) -> None:
        """Put a batch of all rows where prefill has left this one, with a copy of the cache."""
        batch.cache, batch.position = copy.deepcopy(self.batch.cache), self.batch.position.clone()

    def _by_row(self, values: torch.Tensor) -> list[np.ndarray]:
        return [row[: len(prompt.grid)] for row, prompt in zip(values.cpu().numpy(), self.prompts, strict=True)]

    def records(self, seeds: list[int]) -> list[Record]:
        pairs = zip(self.prompts, seeds, strict=True)
        return [Record(self.vlm, prompt, seed, {}, layers=[]) for prompt, seed in pairs]

    def options(self, pruner: Pruner | None, sample: Sampling | None) -> Options:
        return Options([], None, pruner, "masked", sample, self.max_new_tokens)


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


class _Rows(Batch):
    """The batch of a branch: what the dense answers look at and depend on is found once for all branches.

    Dense answers start from the trunk's prefill, too. What they depend on is the costliest to find and kept on disk.
    """

    def __init__(self, trunk: Trunk, records: Sequence[Record], options: Options):
        self.trunk = trunk
        super().__init__(trunk.vlm, records, options)

    def _dense(self, options: Options) -> tuple[Batch, torch.Tensor]:
        batch = Batch(self.vlm, self.records, options)
        self.trunk.lend(batch)
        return batch, self.trunk.logits.clone()

    def _hindsight(self, layer: int) -> torch.Tensor:
        key = layer, self.options.sample, *self.layout.seeds
        if key not in self.trunk.hindsight:
            self.trunk.hindsight[key] = super()._hindsight(layer)
        return self.trunk.hindsight[key]

    def _relevance(self, tokens: int) -> torch.Tensor:
        vlm, options = self.vlm, {"relevance": tokens, "max_new_tokens": self.trunk.max_new_tokens}
        key = key_of(vlm, self.trunk.samples, options, self.trunk.state)
        path = None if key is None else cache_folder() / f"relevance-{key}.json"
        found = None if path is None else recall(path)
        if found is None:
            before = state_of(vlm)  # in the middle of a run, whose attention is routed
            found = super()._relevance(tokens).cpu().tolist()
            if path is not None and state_of(vlm) == before:
                keep(path, found)
        return torch.tensor(found, dtype=torch.float32, device=self.vlm.model.device)


class _Branch(Run):
    """A run that goes on from a trunk: its selection is shown the prefill, and it gets a copy of the cache."""

    def __init__(self, trunk: Trunk, records: list[Record], options: Options):
        super().__init__(trunk.vlm, records, options, len(records))
        self.trunk = trunk

    def prefill(self, records: Sequence[Record]) -> tuple[Batch, torch.Tensor]:
        trunk = self.trunk
        self.current = batch = _Rows(trunk, records, self.options)
        for group in batch.groups:
            if not group.selection.dense_prefill:
                return batch, batch.prefill()
            for view in trunk.views:
                group.selection.observe_prefill(view)
        trunk.lend(batch)
        for group in batch.groups:
            group.settle(batch.cache)
        return batch, trunk.logits.clone()
