"""Collecting what one decode produces, in memory or streamed to a store, and making the trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionpulse_analysis.families import Prompt
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.store import TraceStore
from visionpulse_analysis.traces import Trace, create_trace

CHOICE = ("kept", "budget", "k", "pruner_mass")


@dataclass
class Choice:
    """What a pruner did at one step for one row: kept bool [patch], the budget share, and the mass it saw (or NaN)."""

    kept: np.ndarray
    budget: float
    mass: float

    def fields(self) -> dict[str, Any]:
        return {"kept": self.kept, "budget": self.budget, "k": int(self.kept.sum()), "pruner_mass": self.mass}


def choices_of(selection: Selection, step: int, patches: list[int]) -> list[Choice]:
    """The choice of a selection for every row of the batch, which has ``patches`` of them.

    Prefill (step 0) and undecided steps keep everything.
    """
    if step == 0 or selection.kept is None:
        return [Choice(np.ones(count, bool), 1.0, float("nan")) for count in patches]
    kept = selection.kept.cpu().numpy()
    shares = [
        [float("nan")] * len(patches) if value is None else value.tolist()
        for value in (selection.budget, selection.mass)
    ]
    return [Choice(row[:count], budget, mass) for row, count, budget, mass in zip(kept, patches, *shares, strict=True)]


class Record:
    """The growing record of one row."""

    def __init__(self, vlm: VLM, prompt: Prompt, meta: dict[str, Any], layers: list[int], heads: list[int] | None):
        self.vlm, self.prompt, self.meta = vlm, prompt, meta
        self.layers, self.heads = layers, heads
        self.finished = False
        self.steps: list[dict[str, Any]] = []
        self.writer: Any = None

    def open(self, store: TraceStore, pruned: bool, overwrite: bool) -> None:
        """Begin to stream to a store."""
        self.writer = store.writer(
            self.meta["id"],
            grid=self.prompt.grid,
            layers=self.layers,
            heads=self.heads,
            optional=CHOICE if pruned else (),
            images=self.prompt.images,
            prompt_tokens=self._prompt_tokens(),
            meta=self.meta,
            overwrite=overwrite,
        )

    def add(self, token: int, logprob: float, attention: np.ndarray, mass: np.ndarray, choice: Choice | None) -> None:
        """Take one finished step."""
        step = {
            "token": self.vlm.tokenizer.decode([token]),
            "token_id": token,
            "logprob": logprob,
            "attention": attention,
            "mass": mass,
            **({} if choice is None else choice.fields()),
        }
        self.steps.append({"token_id": token} if self.writer is not None else step)
        if self.writer is not None:
            self.writer.append(**step)

    def close(self) -> Trace:
        """Make the trace; a streamed one is completed on disk."""
        text = self.vlm.tokenizer.decode([step["token_id"] for step in self.steps])
        known_now = {"finished": self.finished, "text": text}
        if self.writer is not None:
            return self.writer.close(known_now)
        columns = {name: [step[name] for step in self.steps] for name in self.steps[0]}
        return create_trace(
            attention=np.stack(columns["attention"]),
            mass=np.stack(columns["mass"]),
            tokens=columns["token"],
            token_ids=columns["token_id"],
            logprobs=columns["logprob"],
            grid=self.prompt.grid,
            layers=self.layers,
            heads=self.heads,
            **{name: np.asarray(columns[name]) for name in CHOICE if name in columns},
            images=self.prompt.images,
            prompt_tokens=self._prompt_tokens(),
            meta={**self.meta, **known_now},
        )

    def _prompt_tokens(self) -> list[str]:
        ids, text = self.prompt.ids.tolist(), (self.prompt.kinds == 0).tolist()
        shown = [i for n, i in enumerate(ids) if text[n] or n == 0 or i != ids[n - 1]]
        return [self.vlm.tokenizer.decode([i]) for i in shown]


@contextmanager
def collecting(records: list[Record], store: TraceStore | None, *, pruned: bool, overwrite: bool) -> Iterator[None]:
    """Stream the records to ``store`` if there is one; what an exception interrupts stays readable, and unfinished."""
    try:
        if store is not None:
            for record in records:
                record.open(store, pruned, overwrite)
        yield
    finally:
        for record in records:
            if record.writer is not None:
                record.writer.abandon()
