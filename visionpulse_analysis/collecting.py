"""Collecting what one decode produces, in memory or streamed to a store, and making the trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.costs import ModelShape
from visionpulse_analysis.families import Prompt
from visionpulse_analysis.models import VLM
from visionpulse_analysis.recording import StepAttention
from visionpulse_analysis.store import TraceStore
from visionpulse_analysis.traces import Trace, create_trace

CHOICE = ("kept", "budget", "k", "pruner_mass", "k_per_layer")


@dataclass
class Choice:
    """What was visible at one step of one row, and why.

    kept : bool [patch], visible at the last layer. k_per_layer : int32 [model_layer], how many are visible at each.
    budget : the share that the pruner aimed at, or else the share kept. mass : the mass that it saw, or NaN.
    """

    kept: np.ndarray
    k_per_layer: np.ndarray
    budget: float
    mass: float

    def fields(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "budget": self.budget,
            "k": int(self.kept.sum()),
            "pruner_mass": self.mass,
            "k_per_layer": self.k_per_layer,
        }


def choices_of(attention: StepAttention, patches: list[int]) -> list[Choice]:
    """What the step just made left visible, for every row of the batch, which has ``patches`` of them."""
    selection = attention.selection
    shown = [attention.layout.patches if kept is None else kept for kept in attention.shown]
    # Layers that share a choice share the object, and so the count.
    counted = {id(kept): kept.sum(dim=1) for kept in shown}
    counts = torch.stack([counted[id(kept)] for kept in shown], dim=1).int().cpu().numpy()
    kept = shown[-1].cpu().numpy()
    budget = mass = None
    if selection is not None and attention.step:
        budget, mass = selection.budget, selection.mass
    masses = [float("nan")] * len(patches) if mass is None else mass.tolist()
    budgets = (counts[:, -1] / patches).tolist() if budget is None else budget.tolist()
    return [
        Choice(row[:count], per_layer, *numbers)
        for row, count, per_layer, *numbers in zip(kept, patches, counts, budgets, masses, strict=True)
    ]


class Record:
    """The growing record of one row."""

    def __init__(self, vlm: VLM, prompt: Prompt, meta: dict[str, Any], layers: list[int], heads: list[int] | None):
        self.vlm, self.prompt, self.meta = vlm, prompt, meta
        self.layers, self.heads = layers, heads
        self.finished = False
        self.account: dict[str, Any] = {}  # what the costs depend on beside the patches visible
        self.steps: list[dict[str, Any]] = []
        self.writer: Any = None
        self.trace: Trace | None = None

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
            n_layers=self.vlm.n_layers,
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
        """Make the trace, once; a streamed one is completed on disk."""
        if self.trace is None:
            self.trace = self._make()
        return self.trace

    def _make(self) -> Trace:
        text = self.vlm.tokenizer.decode([step["token_id"] for step in self.steps])
        shape = ModelShape.of(self.vlm.model.config, self.vlm.model.dtype.itemsize)
        text_tokens = len(self.prompt.ids) - len(self.prompt.grid)
        costs = {"shape": shape.to_dict(), "text": text_tokens, **self.account}
        known_now = {"finished": self.finished, "text": text, "costs": costs}
        if self.writer is not None:
            return self.writer.close(known_now)
        columns: dict[str, Any] = {name: [step[name] for step in self.steps] for name in self.steps[0]}
        chosen: dict[str, Any] = {name: np.asarray(columns[name]) for name in CHOICE if name in columns}
        return create_trace(
            attention=np.stack(columns["attention"]),
            mass=np.stack(columns["mass"]),
            tokens=columns["token"],
            token_ids=columns["token_id"],
            logprobs=columns["logprob"],
            grid=self.prompt.grid,
            layers=self.layers,
            heads=self.heads,
            **chosen,
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
