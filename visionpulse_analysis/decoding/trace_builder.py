"""Collecting what one decode produces, in memory or streamed to a store, and making the trace of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attention import Group
from visionpulse_analysis.metrics.flops import ModelShape
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.token_text import Pieces
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces.quantities import BUILT_IN, CHOICE, Quantity
from visionpulse_analysis.traces.store import TraceStore


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


def visible_of(group: Group, last: int = -1) -> dict[str, torch.Tensor | None]:
    """What the step just made left visible to the rows of a group, still on the device.

    kept bool [row, patch], at the layer ``last``; counts int32 [row, model_layer]; budget, mass float [row], or None.
    """
    shown = [group.layout.patches if kept is None else kept for kept in group.shown]
    # Layers that share a choice share the object, and so the count.
    counted = {id(kept): kept.sum(dim=1) for kept in shown}
    counts = torch.stack([counted[id(kept)] for kept in shown], dim=1).int()
    later = group.selection if group.step else None
    return {
        "kept": shown[last],
        "counts": counts,
        "budget": None if later is None else later.budget,
        "mass": None if later is None else later.mass,
    }


def choice_of(row: int, patches: int, visible: dict[str, Any]) -> Choice:
    """The choice for one row, which has so many patches, from the arrays of `visible_of`."""
    counts, budget, mass = visible["counts"][row], visible["budget"], visible["mass"]
    return Choice(
        visible["kept"][row, :patches].copy(),
        counts.copy(),
        counts[-1] / patches if budget is None else float(budget[row]),
        float("nan") if mass is None else float(mass[row]),
    )


class Record:
    """The growing record of one row.

    Parameters
    ----------
    vlm, prompt, seed
    meta : dict
        Provenance, without what is known only at the end.
    layers, heads
        What is recorded, as in :class:`Options`.
    quantities : sequence of Quantity
        What is recorded besides attention and mass.
    pruned : bool
        Whether the steps come with the choices of a pruner.
    store : TraceStore, optional
        Streams every step to disk as soon as it is made.
    overwrite : bool
        Replace a stored trace of the same id.

    Attributes
    ----------
    finished : whether the trace has ended by itself. text : of the steps so far. trace : the whole trace, once
    :meth:`end` was called.
    """

    def __init__(
        self,
        vlm: VLM,
        prompt: Prompt,
        seed: int,
        meta: dict[str, Any],
        *,
        layers: list[int],
        heads: list[int] | None = None,
        quantities: Sequence[Quantity] = (),
        pruned: bool = False,
        store: TraceStore | None = None,
        overwrite: bool = False,
    ):
        self.vlm, self.prompt, self.seed, self.meta = vlm, prompt, seed, meta
        self.layers, self.heads, self.pruned, self.store, self.overwrite = layers, heads, pruned, store, overwrite
        self.quantities = tuple(quantities)
        self.finished = False
        self.account: dict[str, Any] = {}  # what the costs depend on beside the patches visible
        self.steps: list[dict[str, Any]] = []
        self.text = ""
        self._pieces = Pieces(vlm.decoder)
        self.writer: Any = None
        self.trace: Trace | None = None

    @property
    def over(self) -> bool:
        """Whether the record takes no more steps."""
        return self.trace is not None

    def begin(self) -> None:
        """Begin to stream, if there is a store."""
        if self.store is not None:
            self.writer = self.store.writer(
                self.meta["id"],
                grid=self.prompt.grid,
                layers=self.layers,
                heads=self.heads,
                quantities=self.quantities,
                optional=CHOICE if self.pruned else (),
                images=self.prompt.images,
                prompt_tokens=self._prompt_tokens(),
                meta=self.meta,
                n_layers=self.vlm.n_layers,
                overwrite=self.overwrite,
            )

    def completes(self, token: int, strings: Sequence[str]) -> bool:
        """Whether the text, with this token, completes one of some strings."""
        if not strings:
            return False
        new, begun = self._pieces.would_add(token), len(self.text)
        return any(string in self.text[max(0, begun - len(string) + 1) :] + new for string in strings if new)

    def add(
        self,
        token: int,
        logprob: float,
        recorded: dict[str, np.ndarray],
        row: int,
        choice: Choice | None,
        last: bool = False,
    ) -> None:
        """Take one finished step; with the ``last`` the text ends, also in the middle of a character.

        recorded : what `Recorder.take` gave, of which this is the row ``row``: of a batch, patches wider than this one.
        """
        patches, own = len(self.prompt.grid), {}
        for quantity in (BUILT_IN["attention"], BUILT_IN["mass"], *self.quantities):
            values = recorded[quantity.name][row]
            # Copied: the rest of the batch's array need not stay in memory as long as this row does.
            own[quantity.name] = (values[..., :patches] if "patch" in quantity.axes else values).copy()
        for quantity in self.quantities:
            quantity.check(own[quantity.name])
        piece = self._pieces.add(token)
        piece += self._pieces.rest() if last else ""
        self.text += piece
        step = {
            "token": piece,
            "token_id": token,
            "logprob": logprob,
            **own,
            **({} if choice is None else choice.fields()),
        }
        self.steps.append({} if self.writer is not None else step)
        if self.writer is not None:
            self.writer.append(**step)

    def end(self) -> None:
        """Make the trace; a streamed one is completed on disk."""
        tokens = {"text": len(self.prompt.text_at), "others": len(self.prompt.others)}
        try:
            shape = ModelShape.of(self.vlm.model.config, self.vlm.model.dtype.itemsize)
            costs = {"shape": shape.to_dict(), **tokens, **self.account}
        except ValueError as error:  # the trace is good without; costs_of says why it has none
            costs = {"unknown": str(error)}
        known_now = {"finished": self.finished, "text": self.text, "costs": costs, **self._special_tokens()}
        self.trace = self._in_memory(known_now) if self.writer is None else self.writer.close(known_now)
        self.steps, self.writer = [], None

    def abandon(self) -> None:
        """Stop streaming; the steps so far stay readable, as an unfinished trace."""
        if self.writer is not None:
            self.writer.abandon()

    def _in_memory(self, known_now: dict[str, Any]) -> Trace:
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
            recorded={row: np.stack(columns[row.name]) for row in self.quantities},
            **chosen,
            images=self.prompt.images,
            prompt_tokens=self._prompt_tokens(),
            meta={**self.meta, **known_now},
        )

    def _special_tokens(self) -> dict[str, list[str]]:
        """The tokenizer's special tokens that the text holds, of which an answer is freed."""
        marks = (token.content for token in self.vlm.tokenizer.added_tokens_decoder.values() if token.special)
        found = sorted({mark for mark in marks if mark and mark in self.text})
        return {"special_tokens": found} if found else {}

    def _prompt_tokens(self) -> list[str]:
        ids, text = self.prompt.ids.tolist(), (self.prompt.kinds == 0).tolist()
        shown = [i for n, i in enumerate(ids) if text[n] or n == 0 or i != ids[n - 1]]
        return self.vlm.decoder.pieces(shown)
