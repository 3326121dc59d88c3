"""The dense prefill that the arms of a comparison share, with what their references need of the dense answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from visionpulse_analysis import decoding
from visionpulse_analysis._util.files import cache_folder
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.experiments.cache import keep, recall, state_of
from visionpulse_analysis.experiments.collect import key_of
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces import Trace


class Trunk(decoding.Trunk):
    """One batch of samples after its dense prefill; what their dense answers depend on is found once, and kept."""

    def __init__(self, vlm: VLM, samples: Sequence[Sample], max_new_tokens: int):
        self.vlm, self.max_new_tokens = vlm, max_new_tokens
        self.prompts = [vlm.prompt(one.image, one.question) for one in samples]
        self.hindsight: dict[tuple[Any, ...], torch.Tensor] = {}  # what the dense traces attended to, see _Rows
        self.samples = samples
        self.state = state_of(vlm, _Rows, Trunk)
        super().__init__(vlm, self.records([0] * len(samples)), self.options(None, None))

    def make(self, records: Sequence[Record], options: Options) -> Batch:
        return _Rows(self, records, options)

    def decode(self, pruner: Pruner | None, sample: Sampling | None, seeds: list[int]) -> list[Trace]:
        """Decode all rows from here, under a pruner or dense."""
        records = self.records(seeds)
        self.branch(records, self.options(pruner, sample))
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

    def _by_row(self, values: torch.Tensor) -> list[np.ndarray]:
        return [row[: len(prompt.grid)] for row, prompt in zip(values.cpu().numpy(), self.prompts, strict=True)]

    def records(self, seeds: list[int]) -> list[Record]:
        pairs = zip(self.prompts, seeds, strict=True)
        return [Record(self.vlm, prompt, seed, {}, layers=[]) for prompt, seed in pairs]

    def options(self, pruner: Pruner | None, sample: Sampling | None) -> Options:
        return Options([], None, pruner, "masked", sample, self.max_new_tokens)


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
