"""Run a model while something is done to it: patches hidden, heads ablated, activations patched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis._util.later import xr
from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.interventions.kinds import (
    AblateHeads,
    HidePatches,
    Intervention,
    KeepStates,
    PatchActivations,
    SkipImage,
)
from visionpulse_analysis.decoding.interventions.passes import (
    RecordedQueries,
    TeacherForced,
    prompt_of,
    step_by_step,
)
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps
from visionpulse_analysis.decoding.options import Options, heads_of, layers_of, seeds_of
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.decoding.tokens import end_ids, pad_id
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces import Trace

__all__ = ["AblateHeads", "HidePatches", "Intervention", "PatchActivations", "SkipImage", "intervene"]


def intervene(
    vlm: VLM,
    given: Trace | tuple[Any, Any] | Sequence[Trace | tuple[Any, Any]],
    interventions: Intervention | Pruner | Sequence[Intervention | Pruner] = (),
    *,
    answer: str | Sequence[Any] | None = None,
    alone: bool = False,
    max_new_tokens: int | None = None,
    sample: Sample | None = None,
    seed: int | Sequence[int] = 0,
    layers: Literal["all", "anchor", "none"] | int | Sequence[int] = "none",
    heads: Literal["mean", "all"] | Sequence[int] = "mean",
    states: int | Sequence[int] = (),
    batch_size: int = 16,
    progress: bool | None = None,
) -> xr.Dataset:
    """Read an answer, or decode one, while something is done to the model, and see what becomes of it.

    An answer that is known is read in one pass (teacher forcing): every step is told the same tokens, whatever is done,
    so that runs are compared on one sequence. With ``max_new_tokens`` the model decodes, token by token, under the same
    interventions. What is done to a step stays in its keys and values, which later steps see, unless ``alone``.

    Parameters
    ----------
    vlm : VLM
    given : Trace, (image, question), or list of these
        A trace brings its own answer; image and question are as in :func:`decode`.
    interventions : intervention or list of these
        :class:`HidePatches`, :class:`AblateHeads`, :class:`PatchActivations`, :class:`SkipImage`, a subclass of
        `Intervention`, or one pruner, all of them at once, the first outermost. None for the dense run.
    answer : str or list of int, or a list with one of these for each (image, question), optional
        Text or token ids that the model is told.
    alone : bool
        Do it to every step by itself, after a past that is dense: what one step uses. Only for steps from 1 on.
    max_new_tokens : int, optional
        Decode so many tokens at most, in place of reading a known answer.
    sample, seed
        How to draw them, as in :func:`decode`; greedy without ``sample``.
    layers, heads
        Whose attention to return, as in :func:`decode`.
    states : int or sequence of int
        Layers whose entering hidden states to return: 0 for the embeddings, ``n_layers`` for what leaves the last.
    batch_size : int, at least 1
        Rows that go through the model together.

    progress : bool, optional
        As in :func:`decode`.

    Returns
    -------
    xarray.Dataset
        ``logprobs`` float32 [row, step, word], natural; ``token`` int64 [row, step], what the answer has there, -1
        where it has none; ``attention`` float32 [row, step, layer, (head,) patch], of the step's query, where
        ``layers`` are asked for; ``states`` float32 [row, state_layer, token_position, width], by place in the sequence
        of prompt and answer without padding, or, ``alone``, at the queries, [row, state_layer, step, width]. Steps are
        those of the answer, and for a given ``answer`` one more, of what would follow. NaN beyond the end of a row.

    Raises
    ------
    ValueError
        An argument is not as above; a trace comes from other weights; or the model cannot be changed so, and the
        message names what (layers without softmax attention, sinks or caps where scores are asked for, a window).
    RuntimeError
        A layer does not ask transformers for its attention.

    Examples
    --------
    >>> dense = intervene(vlm, trace)  # doctest: +SKIP
    >>> blind = intervene(vlm, trace, HidePatches(layers=range(4, 8)))  # doctest: +SKIP
    """
    if not isinstance(vlm, VLM):
        raise ValueError(f"vlm must be a model, as vpa.load gives one, got {vlm!r}")
    single = isinstance(given, Trace | tuple)
    rows: list[Any] = [given] if single else list(given)
    if not rows or not all(isinstance(one, Trace) or (isinstance(one, tuple) and len(one) == 2) for one in rows):
        raise ValueError(f"expected a trace, a pair (image, question), or a list of these, got {given!r}")
    acts = [interventions] if isinstance(interventions, Intervention | Pruner) else list(interventions)
    pruners = [one for one in acts if isinstance(one, Pruner)]
    acts = [one for one in acts if not isinstance(one, Pruner)]
    strange = [one for one in acts if not isinstance(one, Intervention)]
    if strange or len(pruners) > 1:
        raise ValueError(
            f"expected interventions, as vpa.HidePatches(...), and one pruner at most, got {strange or pruners}"
        )
    for one in acts:
        one.check(vlm)
    recorded, per_head = layers_of(vlm, layers), heads_of(vlm, heads)
    kept = [whole_number(one, "every entry of states", 0, vlm.n_layers) for one in np.atleast_1d(states).tolist()]
    whole_number(batch_size, "batch_size", least=1)
    if answer is not None and (max_new_tokens is not None or any(isinstance(one, Trace) for one in rows)):
        raise ValueError("give an answer, or traces, which have their own, or max_new_tokens to decode one; not two")
    told = [answer] if single else list(answer) if answer is not None else [None] * len(rows)
    if len(told) != len(rows) or (isinstance(answer, str) and not single):
        raise ValueError(f"{len(rows)} rows need as many answers, got {answer!r}")
    prompts = [prompt_of(vlm, one) if isinstance(one, Trace) else vlm.prompt(*one) for one in rows]
    patches = [len(prompt.grid) for prompt in prompts]
    # A trace ends where it ends; after an answer that is given, what would follow is asked as well.
    answers = [
        one.token_ids[:-1].astype(np.int64) if isinstance(one, Trace) else _ids(vlm, words)
        for one, words in zip(rows, told, strict=True)
    ]
    targets = [
        np.append(ids, one.token_ids[-1] if isinstance(one, Trace) else -1)
        for one, ids in zip(rows, answers, strict=True)
    ]
    options = Options(
        recorded, per_head, pruners[0] if pruners else None, "masked", sample,
        max(map(len, targets)) if max_new_tokens is None else max_new_tokens,
    )  # fmt: skip
    if alone and (pruners or max_new_tokens is not None or any(len(ids) == 0 for ids in answers)):
        raise ValueError("steps are read alone of an answer that is known, of two tokens or more, and without a pruner")
    seeds = seeds_of(seed, len(rows))
    # A token of pictures that the model wrote itself stands for none, which only a cache can tell apart.
    own = vlm.tokenizer.added_tokens_decoder if not vlm.family.known else vlm.family.marks
    special = {vlm.family.image_id, vlm.family.video_id, *own}
    written = any(special.intersection(ids.tolist()) for ids in answers)
    parts: list[dict[str, Any]] = []
    with bar(len(rows), "intervene", "row", progress):
        for start in range(0, len(rows), 1 if alone else batch_size):
            part = slice(start, start + (1 if alone else batch_size))
            own = [one.for_rows(part, patches) for one in acts]
            if alone:
                found = _alone(vlm, prompts[start], answers[start], targets[start], own, options, kept)
            elif max_new_tokens is not None or pruners or written:
                fixed = None if max_new_tokens is not None else targets[part]
                found = _step_by_step(vlm, prompts[part], fixed, seeds[part], own, options, kept)
            else:
                found = _in_one_pass(vlm, prompts[part], answers[part], targets[part], own, options, kept)
            parts += found
            advance("row", len(found))
    return _dataset(parts, recorded, per_head, kept, 1 if alone else 0)


def _ids(vlm: VLM, words: Any) -> np.ndarray:
    """Tokens of a text, or those given: int64 [token]."""
    if words is None:
        return np.zeros(0, np.int64)
    listed = vlm.tokenizer(words, add_special_tokens=False).input_ids if isinstance(words, str) else words
    size = vlm.model.get_input_embeddings().num_embeddings
    return np.array([whole_number(one, "every token of answer", 0, size - 1) for one in listed], np.int64)


Row = dict[str, Any]


def _in_one_pass(
    vlm: VLM,
    prompts: Sequence[Prompt],
    answers: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    acts: Sequence[Intervention],
    options: Options,
    kept: Sequence[int],
) -> list[Row]:
    counts = [len(one) for one in targets]
    # Shorter answers ask their last step again, so that every row has as many queries.
    steps = [np.minimum(np.arange(max(counts)), count - 1) for count in counts]
    whole = [prompt.answered(torch.from_numpy(ids)) for prompt, ids in zip(prompts, answers, strict=True)]
    queries = [len(prompt.ids) - 1 + one for prompt, one in zip(prompts, steps, strict=True)]
    forced, states = TeacherForced(vlm, whole, queries), KeepStates(kept)
    look = RecordedQueries(forced.queries, forced.layout, options.layers, options.heads)
    logprobs = forced.read(*acts, states, run=look)
    rows = look.take() if options.layers else None
    made = []
    for row, (prompt, count) in enumerate(zip(whole, counts, strict=True)):
        begin, patches = int(forced.layout.starts[row]), len(prompt.grid)
        made.append({
            "logprobs": logprobs[row, :count].astype(np.float32),
            "token": targets[row],
            "attention": None if rows is None else rows[row, :count, ..., :patches].float().cpu().numpy(),
            "states": [states.found[layer][0][row, begin:].numpy() for layer in kept],
        })  # fmt: skip
    return made


def _alone(
    vlm: VLM,
    prompt: Prompt,
    answer: np.ndarray,
    target: np.ndarray,
    acts: Sequence[Intervention],
    options: Options,
    kept: Sequence[int],
) -> list[Row]:
    single, states = SingleSteps(vlm, prompt, answer), KeepStates(kept)
    columns = single.length + torch.arange(len(single.steps))
    look = RecordedQueries(columns[None] - single.length, single.layout, options.layers, options.heads)
    logprobs = single.read(single.steps, *acts, states, run=look).cpu().numpy()
    return [{
        "logprobs": logprobs,
        "token": target[1:],
        "attention": look.take()[0].float().cpu().numpy() if options.layers else None,
        "states": [states.found[layer][0][0].numpy() for layer in kept],
    }]  # fmt: skip


def _step_by_step(
    vlm: VLM,
    prompts: Sequence[Prompt],
    fixed: Sequence[np.ndarray] | None,
    seeds: Sequence[int],
    acts: Sequence[Intervention],
    options: Options,
    kept: Sequence[int],
) -> list[Row]:
    records = [Record(vlm, one, seed, {}, layers=options.layers) for one, seed in zip(prompts, seeds, strict=True)]
    states, batch = KeepStates(kept), Batch(vlm, records, options)
    ends, rows = torch.tensor(sorted(end_ids(vlm))), len(prompts)
    chosen: list[torch.Tensor] = []
    going = torch.ones(rows, dtype=torch.bool)
    counts = [0] * rows if fixed is None else [len(one) for one in fixed]

    def following(step: int, logits: torch.Tensor) -> torch.Tensor | None:
        nonlocal going
        if fixed is None:
            batch.choose(logits)
            chosen.append(batch.tokens.cpu())
            for row in range(rows):
                counts[row] += int(going[row])
            going = going & ~torch.isin(chosen[-1], ends)
            return batch.tokens if going.any() and step + 1 < options.max_new_tokens else None
        if step + 1 == max(counts):
            return None
        filler = pad_id(vlm)
        return torch.tensor([int(one[step]) if step < len(one) - 1 else filler for one in fixed])

    found = step_by_step(batch, [*acts, states], following)
    logprobs = torch.log_softmax(found.logits, dim=-1).cpu().numpy()
    made = []
    for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        begin = max(len(one.ids) for one in prompts) - len(prompt.ids)
        read = [torch.cat(states.found[layer], dim=1)[row, begin:][: len(prompt.ids) + count - 1] for layer in kept]
        made.append({
            "logprobs": logprobs[row, :count],
            "token": fixed[row] if fixed is not None else torch.stack(chosen)[:count, row].numpy(),
            "attention": found.rows[row, :count, ..., : len(prompt.grid)].numpy() if options.layers else None,
            "states": [one.numpy() for one in read],
        })  # fmt: skip
    return made


def _dataset(
    parts: Sequence[Row], layers: list[int], heads: list[int] | None, kept: list[int], first: int
) -> xr.Dataset:
    def padded(values: Sequence[np.ndarray], filler: float) -> np.ndarray:
        shape = tuple(max(one.shape[axis] for one in values) for axis in range(values[0].ndim))
        whole = np.full((len(values), *shape), filler, dtype=values[0].dtype)
        for row, one in zip(whole, values, strict=True):
            row[tuple(slice(size) for size in one.shape)] = one
        return whole

    tokens = padded([part["token"] for part in parts], -1)
    variables: dict[str, Any] = {
        "logprobs": (("row", "step", "word"), padded([part["logprobs"] for part in parts], np.nan)),
        "token": (("row", "step"), tokens),
    }
    coordinates: dict[str, Any] = {"step": first + np.arange(tokens.shape[1])}
    if layers:
        per_head = () if heads is None else ("head",)
        variables["attention"] = (
            ("row", "step", "layer", *per_head, "patch"), padded([part["attention"] for part in parts], np.nan),
        )  # fmt: skip
        coordinates |= {"layer": layers, **({} if heads is None else {"head": heads})}
    if kept:
        along = "step" if first else "token_position"
        variables["states"] = (
            ("row", "state_layer", along, "width"), padded([np.stack(part["states"]) for part in parts], np.nan),
        )  # fmt: skip
        coordinates["state_layer"] = kept
    return xr.Dataset(variables, coordinates)
