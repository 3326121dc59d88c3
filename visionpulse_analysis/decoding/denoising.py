"""Decoding by masked diffusion: an answer of a fixed length is unmasked over denoising steps, and each is recorded.

The model is one of the usual classes, trained to fill in masked words. Its prompt is read once, as in any decode, and
cached: it does not see the answer (the prefix mask of LaViDa, arXiv 2505.16839). All places of the canvas are read at
every step, see the prompt and one another in both directions, and the state before a place says which word belongs
there (the shift of Dream, arXiv 2508.15487), that of the last word of the prompt for the first place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import pad

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.attention import Group, Recorder
from visionpulse_analysis.attention.prefill import Prefill
from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.attention.rows import Query
from visionpulse_analysis.decoding import meta_of
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.options import Options, asking_each, heads_of, layers_of, seeds_of
from visionpulse_analysis.decoding.tokens import end_ids
from visionpulse_analysis.decoding.trace_builder import Record, choice_of, visible_of
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.pattern import ORDINARY
from visionpulse_analysis.pruners.view import View
from visionpulse_analysis.traces.quantities import Quantity

CANVAS_MASS = Quantity(
    "canvas_mass",
    ("step", "layer", "head"),
    "share of the softmax row",
    "sum of the attention over all places of the canvas: of the answer, masked or not",
    (0, 1),
)


@dataclass
class DenoisingStep:
    """One step of a batch, after its words were chosen.

    Attributes
    ----------
    number : int, from 0
    before : int64 [row, place], the canvas that was read
    logprobs : float32 [row, place, word], natural logarithms; -inf for the mask itself
    chosen : bool [row, place], the places that this step unmasks
    weights : layer -> float32 [row, head, place, key], the softmax row by which each place is predicted, of recorded
        layers; the last keys are the canvas.
    """

    number: int
    before: torch.Tensor
    logprobs: torch.Tensor
    chosen: torch.Tensor
    weights: dict[int, torch.Tensor]


def denoise(
    vlm: VLM,
    image: Any,
    question: Any,
    *,
    canvas: int = 64,
    steps: int | None = None,
    pruner: Pruner | None = None,
    start: int = 0,
    mask_token: str | None = None,
    layers: Literal["all", "anchor", "none"] | int | Sequence[int] = "all",
    heads: Literal["mean", "all"] | Sequence[int] = "mean",
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
    prompt_options: Any = None,
    watch: Callable[[DenoisingStep], None] | None = None,
) -> Any:
    """Let a masked-diffusion model answer about an image, and record where it looks at every denoising step.

    Low-confidence remasking at temperature 0 in one block (LLaDA, arXiv 2502.09992, section 2.4): each step predicts
    all masked places and keeps the ``canvas / steps`` predictions with the highest probability, one more in the first
    steps where that leaves a remainder; of equal ones the earlier place.

    A step of the trace is a denoising step: its token is what the step unmasks, its attention the mean of the rows by
    which these words were predicted, ``logprob`` their sum. ``trace.text`` is the answer in its own order, to the end
    mark, and ``meta["denoising"]["places"]`` says which places each step unmasked.

    Parameters
    ----------
    vlm, image, question, layers, heads, batch_size, prompt_options
        As in :func:`decode`.
    canvas : int, number of places, at least 1; an answer that is longer has no end.
    steps : int, optional
        1 to ``canvas``; as many as there are places if left out.
    pruner : Pruner, optional
        One that chooses in prefill. From ``start`` 0 it acts there, as in any decode. From a later step on, what it
        would choose by the dense prompt is hidden from the canvas, and nothing is merged.
    start : int, the denoising step from which on patches are hidden, 0 to ``steps``
    mask_token : str, optional
        The token of the vocabulary that masks a place; the tokenizer's mask token, or else its unknown token.
    seed : int or list of int
        As in :func:`decode`; for pruners that draw.
    watch : callable, optional
        Is given every :class:`DenoisingStep`.

    Returns
    -------
    Trace or list of Trace, which have ``canvas_mass`` recorded besides

    Raises
    ------
    ValueError
        An argument is out of range, the pruner chooses at decode steps or, where it is to start later, redirects values
        or counts positions anew, the model names no mask token, sees windows only, was tuned under a pattern, or does
        not compute a plain softmax.
    """
    single = isinstance(question, str)
    questions = [question] if single else list(question)
    images = [image] if single else list(image)
    if len(images) != len(questions) or not questions:
        raise ValueError(f"{len(questions)} questions need as many images, got {len(images)}")
    canvas = whole_number(canvas, "canvas", least=1)
    steps = canvas if steps is None else whole_number(steps, "steps", least=1, most=canvas)
    start, mask = whole_number(start, "start", least=0, most=steps), mask_id(vlm, mask_token)
    options = Options(layers_of(vlm, layers), heads_of(vlm, heads), pruner)
    if not (vlm.sees_everything and vlm.family.known):
        raise ValueError(f"a canvas needs a model of a known type whose layers all see the whole past, not {vlm.name}")
    asking = asking_each(vlm, prompt_options, len(questions))
    prompts = [one.prompt(i, q) for one, i, q in zip(asking, images, questions, strict=True)]
    records = [
        Record(vlm, prompt, one, meta_of(vlm, vlm.weights_hash, prompt, options, one, None, ()),
               layers=options.layers, heads=options.heads, quantities=(CANVAS_MASS,) if options.layers else (),
               pruned=pruner is not None)
        for prompt, one in zip(prompts, seeds_of(seed, len(prompts)), strict=True)
    ]  # fmt: skip
    for first in range(0, len(records), whole_number(batch_size, "batch_size", least=1)):
        run = _Denoiser(vlm, records[first : first + batch_size], options, canvas, steps, start, mask)
        run.finish(watch)
    traces = [record.trace for record in records]
    return traces[0] if single else traces


def mask_id(vlm: VLM, token: str | None = None) -> int:
    """The id of what masks a place: of ``token``, else the tokenizer's mask or unknown token; ValueError for none."""
    tokenizer: Any = vlm.tokenizer
    named = token or tokenizer.mask_token or tokenizer.unk_token
    found = None if named is None else tokenizer.get_vocab().get(named)
    if found is None:
        raise ValueError(f"{vlm.name} has no token {named!r} to mask a place with; name one of its vocabulary")
    return found


class _Noting(Prefill):
    """What a selection would leave, by a prefill that stays dense: nothing is merged either."""

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> None:
        super().enter(layer, block, states)
        self.states = states

    def mask(self, view: View) -> torch.Tensor | None:
        return view.mask

    def leave(self, layer: int, states: torch.Tensor) -> None:
        self.states = self.block = None


class _Rows(Recorder):
    """Keeps whole rows of the prompt's last word, float32 [row, head, key], by layer."""

    def put(self, layer: int, logits: torch.Tensor, redirect: torch.Tensor | None = None) -> None:
        self.put_weights(layer, torch.softmax(logits, dim=-1))

    def put_weights(self, layer: int, weights: torch.Tensor, redirect: torch.Tensor | None = None) -> None:
        self._rows[layer] = weights

    @property
    def whole(self) -> dict[int, torch.Tensor]:
        return self._rows


class _Denoiser:
    """Rows that are denoised together."""

    def __init__(
        self, vlm: VLM, records: list[Record], options: Options, canvas: int, steps: int, start: int, mask: int
    ):
        self.vlm, self.options, self.start, self.mask = vlm, options, start, mask
        self.batch = Batch(vlm, records, options)
        self.group: Group | None = self.batch.groups[0] if self.batch.groups else None
        if self.group is not None:
            _check_pruner(self.group, start)
            if start:
                self.group.prefill = _Noting(self.group.layout, self.group.selection)
        self.rows = _Rows(self.batch.layout, options.layers, options.heads)
        self.batch.recorder, self.recorder = self.rows, self.batch.recorder
        self.counts = [canvas // steps + (step < canvas % steps) for step in range(steps)]
        device = vlm.model.device
        self.words = torch.full((len(records), canvas), mask, device=device)
        self.weights: dict[int, torch.Tensor] = {}
        self.hidden: list[torch.Tensor | None] = [None] * vlm.n_layers
        self.places: list[list[list[int]]] = [[] for _ in records]

    @torch.inference_mode()
    def finish(self, watch: Callable[[DenoisingStep], None] | None) -> None:
        """Denoise to the end, and make the traces."""
        batch, group = self.batch, self.group
        with intercept(self.vlm.model, batch.attend):
            first = batch.prefill()
        if group is not None:
            for number, row in enumerate(group.rows):
                batch.records[row].account = group.account(number)
        for number, count in enumerate(self.counts):
            before = self.words.clone()
            logits = torch.cat([first[:, None], self._read(number)[:, :-1]], dim=1)
            logits[..., self.mask] = -torch.inf
            logprobs = torch.log_softmax(logits, dim=-1)
            sure, words = logprobs.max(dim=-1)
            order = sure.masked_fill(before != self.mask, -torch.inf).sort(dim=1, descending=True, stable=True)[1]
            chosen = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order[:, :count], True)
            self.words = torch.where(chosen, words, before)
            rows = self._predicting()
            self._note(number, chosen, sure, rows)
            if watch is not None:
                watch(DenoisingStep(number, before, logprobs, chosen, rows))
        for row, record in enumerate(batch.records):
            self._end(row, record, len(self.counts))

    def _read(self, number: int) -> torch.Tensor:
        """Read the canvas behind the prompt: logits float32 [row, place, word] of what comes after each place."""
        batch, width, places = self.batch, self.batch.width, self.words.shape[1]
        if self.group is not None:
            self.group.step = number
            pruned = number >= self.start
            self.group.shown = list(self.group.prefill.kept) if pruned else [None] * self.vlm.n_layers
            self.hidden = [None if s is None else batch.layout.hidden_keys(s, width) for s in self.group.shown]
        real = batch.layout.real(width)
        mask = pad(real, (0, places), value=True)[:, None, None].expand(-1, 1, places, -1)
        positions = batch.position[:, None] + torch.arange(places, device=real.device)
        with intercept(self.vlm.model, self._attend):
            out = self.vlm.model(
                input_ids=self.words,
                attention_mask=mask,
                position_ids=positions.expand(3, -1, -1) if self.vlm.family.mrope else positions,
                past_key_values=batch.cache,
                use_cache=True,
            )
        cache: Any = batch.cache
        for layer in cache.layers:  # the canvas is read anew at every step
            layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]
        return out.logits.float()

    def _attend(self, call: Call) -> Any:
        hidden = self.hidden[call.layer]
        if hidden is not None:
            call = call.hiding(pad(hidden, (0, call.query.shape[2])))
        output = call.run()
        if call.layer in self.options.layers:
            call.check_plain()
            self.batch.reader.check(Query.of(call, 0, call.key.shape[2]), False, output)
            view = View(0, call.layer, self.batch.layout, call.query, call.key, call.value, call.mask, call.scaling)
            everyone = torch.arange(call.query.shape[2], device=call.query.device).expand(len(call.query), -1)
            self.weights[call.layer] = torch.softmax(view.query_logits(everyone), dim=-1)
        return output

    def _predicting(self) -> dict[int, torch.Tensor]:
        """The rows by which each place is predicted: layer -> float32 [row, head, place, key]."""
        places = self.words.shape[1]
        return {
            layer: torch.cat([pad(self.rows.whole[layer], (0, places))[:, :, None], weights[:, :, :-1]], dim=2)
            for layer, weights in self.weights.items()
        }

    def _note(self, number: int, chosen: torch.Tensor, sure: torch.Tensor, rows: dict[int, torch.Tensor]) -> None:
        share = chosen / chosen.sum(dim=1, keepdim=True)
        own = []
        for layer, weights in rows.items():
            mean = torch.einsum("rhpk,rp->rhk", weights, share)
            self.recorder.put_weights(layer, mean)
            one = mean[..., -self.words.shape[1] :].sum(dim=-1)
            own.append(one.mean(dim=1) if self.options.heads is None else one[:, self.options.heads])
        taken = {name: value.cpu().numpy() for name, value in self.recorder.take().items()}
        if own:
            taken[CANVAS_MASS.name] = torch.stack(own, dim=1).cpu().numpy()
        shown = None if self.group is None else visible_of(self.group, self.vlm.attention_layers[-1])
        shown = shown and {name: None if v is None else v.cpu().numpy() for name, v in shown.items()}
        for row, record in enumerate(self.batch.records):
            at, patches = chosen[row].nonzero()[:, 0].tolist(), len(record.prompt.grid)
            ids = self.words[row, at].tolist()
            self.places[row].append(at)
            record.steps.append(
                {
                    "token": self.vlm.decoder(ids),
                    "token_id": ids[0],
                    "logprob": float(sure[row, at].sum()),
                    "attention": taken["attention"][row][..., :patches],
                    **{name: taken[name][row] for name in taken if name != "attention"},
                    **({} if shown is None else choice_of(row, patches, shown).fields()),
                }
            )

    def _end(self, row: int, record: Record, steps: int) -> None:
        ids, ends = self.words[row].tolist(), end_ids(self.vlm)
        last = next((place for place, one in enumerate(ids) if one in ends), None)
        record.finished = last is not None
        record.text = self.vlm.decoder(ids if last is None else ids[: last + 1])
        record.account = {**record.account, "canvas": len(ids)}
        record.meta["denoising"] = {
            "canvas": len(ids), "steps": steps, "start": self.start if self.group is not None else None,
            "places": self.places[row],
        }  # fmt: skip
        record.end()


def _check_pruner(group: Group, start: int) -> None:
    """Raise ValueError for a pruner that a canvas cannot follow."""
    run, name = group.selection, type(group.selection.rules).__name__
    if _acts(run, "visible") or run.edits_cache or run.recomputes:
        raise ValueError(
            f"{name} chooses at every decode step by its newest query, and a denoising step has none; give a pruner "
            "that chooses in prefill, such as fastv, divprune, sparsevlm or vtw"
        )
    if run.pattern != ORDINARY:
        raise ValueError(f"{name} changes what pictures take part in at every step, which a canvas does not follow")
    if start and (_acts(run, "redirect") or group.prefill.renumbers):
        raise ValueError(f"{name} changes the states of the prompt, which is read once; say start=0")


def _acts(run: Selection, rule: str) -> bool:
    """Whether any part of a selection does something under the name of a rule."""
    parts = getattr(run, "parts", None)
    return run.has(rule) if parts is None else any(_acts(part, rule) for part in parts)
