"""An answer read under interventions: in one pass, or step by step as it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from visionpulse_analysis._util.torch_settings import own_settings
from visionpulse_analysis.attention import Look, Recorder, RowReader
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding.batch import Batch, check_map, newest_logits_only
from visionpulse_analysis.decoding.interventions.kinds import (
    Acting,
    Intervention,
    Output,
    Run,
    Tokens,
    UnderSelection,
)
from visionpulse_analysis.decoding.tokens import pad_id
from visionpulse_analysis.models.families import Prompt, in_columns
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.prompts import ANSWER
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.pattern import ORDINARY
from visionpulse_analysis.pruners.top_k import float64
from visionpulse_analysis.pruners.view import Layout
from visionpulse_analysis.traces import Trace, media_of


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    """Natural log probabilities over the last axis, as float64."""
    return torch.log_softmax(float64(logits), dim=-1).cpu().numpy()


def layout_of(vlm: VLM, prompts: Sequence[Prompt], starts: Sequence[int], width: int) -> Layout:
    """Where the pictures of prompts are whose rows begin in the columns ``starts``; no word counts as the question."""
    return Layout(
        **in_columns(prompts, starts),  # pyright: ignore[reportArgumentType]
        n_layers=vlm.n_layers,
        default_anchor=vlm.default_anchor,
        seeds=list(range(len(prompts))),
        question=torch.zeros(len(prompts), width, dtype=torch.bool),
        pattern=vlm.pattern,
    ).on(vlm.model.device)


def asked_length(prompt: Prompt) -> int:
    """Tokens of a prompt without what it is followed by of an answer."""
    return int((prompt.kinds != ANSWER).sum())


class RecordedQueries:
    """The kernel, which records the rows of some queries of a pass: int64 [row, query], their columns.

    Parameters
    ----------
    queries : int64 [row, query]
    layout, layers, heads
        As in :class:`Recorder`.
    """

    def __init__(self, queries: torch.Tensor, layout: Layout, layers: Sequence[int], heads: Sequence[int] | None):
        self.queries = queries.cpu()
        # Rows of a batch ask at different columns: each column that any of them asks is recorded for all of them.
        self.recorders = {int(column): Recorder(layout, layers, heads) for column in self.queries.unique()}
        self.look = Look(self.recorders, RowReader(), prefill=True)

    def __call__(self, call: Call) -> Output:
        return self.look(call, call.key.shape[2])

    def take(self) -> torch.Tensor:
        """Rows float16 [row, query, layer, (head,) patch]."""
        taken = {column: recorder.take()["attention"] for column, recorder in self.recorders.items()}
        return torch.stack(
            [torch.stack([taken[int(column)][row] for column in line]) for row, line in enumerate(self.queries)]
        )


class TeacherForced:
    """A left-padded batch of prompts, each perhaps followed by tokens of its answer, read in one pass.

    Whatever acts on step ``t`` stays in its keys and values, and so is seen by the steps after it, as in decoding.

    Parameters
    ----------
    vlm : VLM
    prompts : sequence of Prompt
        `Prompt.answered` appends tokens of an answer.
    queries : sequence of int arrays [query]
        Positions in each unpadded prompt, of which the next token is asked; as many for every prompt.

    Attributes
    ----------
    queries : int64 [row, query]
        The same in the padded batch.
    """

    @own_settings()
    def __init__(self, vlm: VLM, prompts: Sequence[Prompt], queries: Sequence[Sequence[int] | np.ndarray]):
        self.vlm, self.prompts, device = vlm, list(prompts), vlm.model.device
        self.inputs = vlm.to_device(vlm.family.batch(prompts, pad_id(vlm)))
        position = vlm.family.positions(vlm.model, self.inputs)
        self.position = position.expand(3, -1, -1) if vlm.family.mrope and position.ndim == 2 else position
        self.width = self.inputs["input_ids"].shape[1]
        starts = [self.width - len(prompt.ids) for prompt in prompts]
        self.layout = layout_of(vlm, prompts, starts, self.width)
        self.queries = torch.as_tensor(np.array(queries), device=device) + self.layout.starts[:, None]
        self.column = torch.arange(self.width, device=device)
        self.places = self.column - self.layout.starts[:, None]
        asked = torch.tensor([asked_length(prompt) for prompt in prompts], device=device)
        self.steps = (self.places - asked[:, None] + 1).clamp(min=-1)

    def under(self, pruner: Pruner) -> UnderSelection:
        """What a pruner does in prefill, as an intervention, on the tokens of the answers as well."""
        selection = pruner.start(self.layout)
        check_map(selection, self.prompts)
        return UnderSelection(selection)

    @torch.inference_mode()
    def read(self, *interventions: Intervention, run: Run = Call.run) -> np.ndarray:
        """Log probabilities of the next tokens: float64 [row, query, word]; ``run`` is the kernel."""
        tokens = Tokens(self.layout, self.places, self.steps, self.column, self.width)
        if self.vlm.pattern != ORDINARY and not any(isinstance(one, UnderSelection) for one in interventions):
            interventions = self.under(Pruner()), *interventions
        first = int(self.queries.min())
        with Acting(self.vlm, interventions, run).on(tokens):
            logits = self.vlm.model(
                **self.inputs, position_ids=self.position, use_cache=False,
                **newest_logits_only(self.vlm.model, self.width - first),
            ).logits  # fmt: skip
        index = (self.queries - self.width + logits.shape[1])[..., None].expand(-1, -1, logits.shape[-1])
        return log_softmax(logits.gather(1, index))


def prompt_of(vlm: VLM, trace: Trace) -> Prompt:
    """What a trace was an answer to, as it was asked; ValueError where it comes from other weights."""
    if trace.meta["model_hash"] != vlm.weights_hash:
        raise ValueError(
            f"the trace was decoded with weights {trace.meta['model_hash']}, the model has "
            f"{vlm.weights_hash}; decode again with this model"
        )
    asking = vlm.asking(trace.meta.get("prompt_options"))
    return asking.prompt(media_of(trace), trace.meta.get("turns", trace.question))


@dataclass(frozen=True)
class Steps:
    """Of each step; step 0 is prefill.

    logits float32 [row, step, word]; rows float32 [row, step, layer, (head,) patch]; mass float32 [row, step, layer,
    (head)]; both recorded.
    """

    logits: torch.Tensor
    rows: torch.Tensor
    mass: torch.Tensor


@torch.inference_mode()
def step_by_step(
    batch: Batch,
    interventions: Sequence[Intervention],
    following: Callable[[int, torch.Tensor], torch.Tensor | None],
) -> Steps:
    """Decode a batch as `decode` would, its recorder and pruner at work, under interventions.

    Parameters
    ----------
    batch : Batch
        Before its prefill.
    following : callable
        Gets the number of the step and its logits float32 [row, word]; gives the tokens int64 [row] that are read next,
        or None to end.
    """
    if interventions and batch.recomputes:
        raise ValueError(
            f"{batch.options.pruner!r} reads everything anew at each step, which interventions do not follow"
        )
    acting = Acting(batch.vlm, interventions, batch.attend)
    device, rows = batch.layout.device, len(batch.records)
    column = torch.arange(batch.width, device=device)
    position, step = column - batch.layout.starts[:, None], torch.full((rows, batch.width), -1, device=device)
    step[:, -1] = 0
    acting.tokens = Tokens(batch.layout, position, step, column, batch.width, batch.groups)
    logits, recorded = [], []
    with acting.on():
        logits.append(batch.prefill())
        recorded.append(batch.recorder.take())
        while (chosen := following(len(logits) - 1, logits[-1])) is not None:
            batch.tokens, column = chosen.to(device), column[-1:] + 1
            batch.logprobs = torch.log_softmax(logits[-1], dim=1) if batch.groups else None
            position, step = position[:, -1:] + 1, step[:, -1:] + 1
            acting.tokens = Tokens(batch.layout, position, step, column, batch.width + 1, batch.groups)
            logits.append(batch.step())
            recorded.append(batch.recorder.take())
    attention, mass = (torch.stack([one[name] for one in recorded], 1).float().cpu() for name in ("attention", "mass"))
    return Steps(torch.stack(logits, dim=1), attention, mass)
