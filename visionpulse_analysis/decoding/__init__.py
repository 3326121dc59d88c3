"""Decode with a recorder, and perhaps a pruner, attached."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from visionpulse_analysis._util.checks import plain_text, whole_number
from visionpulse_analysis._util.progress import bar
from visionpulse_analysis.attention import Execution
from visionpulse_analysis.attention.prefill import check_one_dimensional
from visionpulse_analysis.attention.routing import check_kernel
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.options import Options, asking_each, heads_of, layers_of, sample_of, seeds_of
from visionpulse_analysis.decoding.run import Run
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.decoding.sharing import Trunk, run_together
from visionpulse_analysis.decoding.tokens import end_ids
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.models.asking import are_turns
from visionpulse_analysis.models.families import Prompt, PromptOptions
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces.quantities import Quantity, quantities_of
from visionpulse_analysis.traces.store import TraceStore

__all__ = [
    "Batch",
    "Options",
    "Run",
    "Trunk",
    "asking_each",
    "decode",
    "decode_each",
    "end_ids",
    "heads_of",
    "layers_of",
    "meta_of",
    "provenance",
]


def decode(
    vlm: VLM,
    image: ImageLike | Sequence[Any],
    question: str | Sequence[Any],
    *,
    layers: Literal["all", "anchor", "none"] | int | Sequence[int] = "all",
    heads: Literal["mean", "all"] | Sequence[int] = "mean",
    record: Sequence[str | Quantity] = (),
    pruner: Pruner | Sequence[Pruner | None] | None = None,
    execution: Execution = "masked",
    seed: int | Sequence[int] = 0,
    sample: Sample | Literal["model"] | None = "model",
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    store: TraceStore | None = None,
    ids: str | Sequence[str] | None = None,
    overwrite: bool = False,
    prompt_options: PromptOptions | Mapping[str, Any] | Sequence[Any] | None = None,
    progress: bool | None = None,
) -> Any:
    """Let the model reason about an image and record where it looks at every step.

    At each step the softmax row of the newest query is restricted to the image patches: temperature 1, not
    renormalised over the image. Step 0 is the token that prefill produces. The model runs under its own
    scaled-dot-product attention; logits and tokens are the same with and without recording.

    What the model's generation configuration says of repetitions, suppressed and forced tokens, lengths and ends is
    followed as the library follows it, row by row, and kept in ``meta["generation"]``; ``logprobs`` are those of the
    model's own logits. So are ``do_sample``, ``temperature``, ``top_p``, ``top_k`` and ``max_new_tokens``, unless
    `sample` and `max_new_tokens` say otherwise. Beams, guidance and other ways to draw are not followed:
    ``meta["generation_left_out"]`` names them.

    Parameters
    ----------
    vlm : VLM
    image : image, Video, or list of these
        An image is a path, a PIL image or uint8 [row_px, col_px, 3]. With one question, a list is several images or
        videos of that question. With a list of questions, one entry (an image, a video or a list) per question. None
        where turns hold their pictures themselves.
    question : str, turns, or list of these
        Turns are a list of messages in the chat format of transformers, ``{"role": "user", "content": ...}``, a content
        a text or a list of ``{"type": "text", "text": ...}``, ``{"type": "image"}`` and ``{"type": "video"}``. Such a
        part stands where the next of the pictures given is shown, or holds its own, ``{"type": "image", "image":
        ...}``; without any, the pictures begin the first turn of the user. The last turn is the user's.
        A list of questions is decoded ``batch_size`` rows at a time, the place of one that has ended taken by the next,
        and gives a list of traces.
    layers : "all", "anchor", "none", int or list of int
        Which layers to record, zero-based; "anchor" is the model's default anchor.
    heads : "mean", "all" or list of int
        The mean over heads, or one row per head.
    record : list of str or Quantity
        What to record besides, at the layers and heads chosen: names of :func:`vpa.list_quantities`, such as
        "head_entropy", or a quantity of your own (:func:`vpa.quantity`). Found in ``trace.data``.
    pruner : Pruner, optional, or list of these
        Hides patches; dense without one. A list decodes everything once under each, from one prefill wherever a pruner
        leaves prefill dense, and gives a list of what each alone would give, the same to the last bit.
    execution : "masked" or "gathered"
        Hide dropped patches by a mask (exact simulation), or read only the kept keys and values.
    seed : int or list of int
        Row ``i`` of a list of questions uses ``seed + i``, or the i-th seed of a list. With a list of pruners, a list
        has one seed for each of them: a pruner given three times with three seeds is sampled three times.
    sample : "model", Sample or None
        Temperature and truncation; None for greedy. "model" draws as the model's generation configuration says, as
        ``generate`` would, and is greedy where that says nothing. ``meta["sample"]`` has what was done.
    batch_size : int
        Rows decoded together, at least 1.
    max_new_tokens : int, optional
        At least 1; without it what the model's generation configuration says, or 256. A trace that stops here has
        ``meta["finished"]`` False.
    store : TraceStore, optional
        Streams every finished step to disk under ``ids`` while decoding.
    ids : str or list of str, optional
        One different id per question; becomes ``meta["id"]``. Needed with a store. With a list of pruners, a list
        with that for each of them.
    overwrite : bool
        Replace what the store holds under these ids.
    prompt_options : PromptOptions or dict, optional, or list of these
        Limits of pictures, system prompt, prefix of the answer, arguments of the chat template; they go before those
        that the model was loaded with. A list has one for each question. Kept in ``meta["prompt_options"]``, turns in
        ``meta["turns"]``.
    progress : bool, optional
        Show a bar of what is decoded, after two seconds; without it where somebody looks, in a terminal or a notebook,
        unless ``VISIONPULSE_PROGRESS=0`` is set.

    Returns
    -------
    Trace or list of Trace; with a list of pruners, a list of these

    Raises
    ------
    ValueError
        A question is empty, a layer or head out of range, an option unknown, an image or video unreadable, the model
        reads no videos, or it cannot be asked as the prompt options say. Nothing has been decoded then.
    FileNotFoundError
        An image path does not exist.
    FileExistsError
        The store holds one of the ids; nothing has been decoded then.
    FloatingPointError
        The model returned NaN or infinite logits. What finished before is in the store.
    RuntimeError
        The model is decoding in another thread.
    """
    given = decode_each(
        vlm, image, question, layers=layers, heads=heads, record=record, pruner=pruner, execution=execution, seed=seed,
        sample=sample, max_new_tokens=max_new_tokens, batch_size=batch_size, store=store, ids=ids, overwrite=overwrite,
        prompt_options=prompt_options, progress=progress,
    )  # fmt: skip
    made = list(given)
    return made if isinstance(pruner, list | tuple) else made[0]


def decode_each(
    vlm: VLM,
    image: ImageLike | Sequence[Any],
    question: str | Sequence[Any],
    *,
    layers: Any,
    heads: Any,
    pruner: Any,
    execution: Execution,
    seed: Any,
    sample: Any,
    max_new_tokens: int | None,
    batch_size: int,
    store: TraceStore | None = None,
    ids: Any = None,
    overwrite: bool = False,
    prompt_options: Any = None,
    record: Any = (),
    progress: bool | None = None,
) -> Iterator[Any]:
    """What :func:`decode` gives, one pruner after the other: the traces of each are made when they are asked for."""
    if not isinstance(vlm, VLM):
        raise ValueError(f"vlm must be a model, as vpa.load gives one, got {vlm!r}")
    image, question, ids = plain_text(image), plain_text(question), plain_text(ids)
    if isinstance(question, bytes) or not isinstance(question, Iterable):
        raise ValueError(f"question must be a text or a list of texts, got {question!r}")
    single = isinstance(question, str) or are_turns(question)
    questions = [question] if single else list(question)
    images = [image] if single else list(image) if isinstance(image, list | tuple) else [image] * len(questions)
    if not questions:
        raise ValueError("no question given; pass a string or a list of strings")
    if len(images) != len(questions):
        raise ValueError(f"{len(questions)} questions need as many images, got {len(images)}")
    batch_size = whole_number(batch_size, "batch_size", least=1)
    several = isinstance(pruner, list | tuple)
    drawn, own = sample_of(vlm, sample), vlm.generation
    followed = [*own.drawing] if isinstance(sample, str) else []
    if max_new_tokens is None:
        max_new_tokens, followed = own.max_new_tokens or 256, [*followed, "max_new_tokens"]
    arms: list[tuple[Any, Any, Any]] = _arms(list(pruner), seed, ids) if several else [(pruner, seed, ids)]
    asked: list[tuple[Options, list[int], list[str | None]]] = []
    for arm, arm_seed, arm_ids in arms:
        chosen = layers_of(vlm, layers), heads_of(vlm, heads)
        options = Options(*chosen, arm, execution, drawn, max_new_tokens, quantities_of(record))
        if options.pruner is not None and options.pruner.renumbers:
            check_one_dimensional(vlm.name, vlm.model, vlm.family.mrope, vlm.windowed_layers)
        names = _names(arm_ids, len(questions), store, overwrite)
        asked.append((options, seeds_of(arm_seed, len(questions)), names))
    _check_different([name for _, _, names in asked for name in names])
    asking = asking_each(vlm, prompt_options, len(questions))
    prompts = [one.prompt(i, q) for one, i, q in zip(asking, images, questions, strict=True)]
    if batch_size > 1:
        vlm.family.check_together(prompts)
    weights = vlm.weights_hash
    runs = [
        (options, [
            Record(vlm, prompt, row_seed, meta_of(vlm, weights, prompt, options, row_seed, name, followed),
                   layers=options.layers, heads=options.heads, quantities=options.record,
                   pruned=options.pruner is not None, store=store, overwrite=overwrite)
            for prompt, row_seed, name in zip(prompts, seeds, names, strict=True)
        ])
        for options, seeds, names in asked
    ]  # fmt: skip
    count = len(arms) * len(questions)
    of = (count, "trace") if count > 1 else (max_new_tokens - 1, "step")
    try:
        with bar(of[0], "decode", of[1], progress):
            for records in run_together(vlm, runs, batch_size) if several else _run(vlm, *runs[0], batch_size):
                yield records[0].trace if single else [record.trace for record in records]
                records.clear()  # what was made is not held until the last pruner is done
    finally:
        for _, records in runs:
            for record in records:
                record.abandon()


def _run(vlm: VLM, options: Options, records: list[Record], batch_size: int) -> Iterator[list[Record]]:
    Run(vlm, records, options, batch_size).finish()
    yield records


def _arms(pruners: list[Any], seed: Any, ids: Any) -> list[tuple[Any, Any, Any]]:
    """A pruner, seed and ids for each of several decodes; ValueError where they do not match."""
    if not pruners:
        raise ValueError("pruner is an empty list; give at least one pruner, or None for dense")
    seeds = list(seed) if isinstance(seed, Iterable) and not isinstance(seed, str | bytes) else [seed] * len(pruners)
    names = [None] * len(pruners) if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
    for what, found in (("seeds", seeds), ("lists of ids", names)):
        if len(found) != len(pruners):
            raise ValueError(f"{len(pruners)} pruners need as many {what}, got {len(found)}")
    return list(zip(pruners, seeds, names, strict=True))


def _check_different(names: Sequence[str | None]) -> None:
    given = [name for name in names if name is not None]
    if len(set(given)) != len(given):
        raise ValueError(
            f"ids must be different, also between pruners; got {len(given)} with {len(set(given))} different"
        )


@cache
def _versions() -> dict[str, str]:
    # Looked up once: it takes as long as a step.
    packages = ("torch", "transformers", "visionpulse_analysis")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def meta_of(
    vlm: VLM, weights: str, prompt: Prompt, options: Options, seed: int, name: str | None, followed: Sequence[str]
) -> dict[str, Any]:
    """What a trace says from its beginning; ``followed`` of the model's own ways to draw, and its limit of tokens."""
    asked = vlm.generation
    stated = {**asked.drawing, **({} if asked.max_new_tokens is None else {"max_new_tokens": asked.max_new_tokens})}
    applied = {**asked.applied, **{name: stated[name] for name in followed if name in stated}}
    left_out = {**asked.left_out, **{name: value for name, value in stated.items() if name not in applied}}
    return {
        **({} if name is None else {"id": name}),
        "question": prompt.question,
        **({"turns": prompt.turns} if prompt.turns else {}),
        **({"prompt_options": prompt.options.to_dict()} if prompt.options.to_dict() else {}),
        **({"videos": prompt.videos} if prompt.videos else {}),
        **({"map": prompt.map} if prompt.map else {}),
        **({"unlike_training": unlike} if (unlike := vlm.unlike_training(prompt.images)) else {}),
        **provenance(vlm, options, seed, options.max_new_tokens, weights),
        **({"generation": applied} if applied else {}),
        **({"generation_left_out": left_out} if left_out else {}),
        # A negative id, as some configurations have it, means that no token ends a trace.
        "end_tokens": [vlm.decoder([token]) for token in sorted(end_ids(vlm)) if token >= 0],
    }


def provenance(
    vlm: VLM, options: Options, seed: int, max_new_tokens: int | None, weights: str | None = None
) -> dict[str, Any]:
    """What every trace says of where it comes from, JSON-ready.

    Parameters
    ----------
    vlm, options, seed
        With which the row was decoded.
    max_new_tokens : int, optional
        At which it would have stopped.
    weights : str, optional
        The model's hash, where the caller has just taken it.
    """
    return {
        "model": vlm.name,
        "model_hash": vlm.weights_hash if weights is None else weights,
        "revision": vlm.revision,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "attention": check_kernel(vlm.model),
        "seed": seed,
        "sample": None if options.sample is None else options.sample.to_dict(),
        "pruner": None if options.pruner is None else options.pruner.to_dict(),
        "execution": options.execution if options.pruner is not None else "dense",
        "max_new_tokens": max_new_tokens,
        "versions": dict(_versions()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _names(ids: str | Sequence[str] | None, count: int, store: TraceStore | None, overwrite: bool) -> list[str | None]:
    if store is not None and not isinstance(store, TraceStore):
        raise ValueError(f"store must be a TraceStore, got {store!r}; say vpa.TraceStore(path, mode='a')")
    if ids is None:
        if store is not None:
            raise ValueError("streaming to a store needs ids, one per question")
        return [None] * count
    listed = [ids] if isinstance(ids, str) else list(ids) if isinstance(ids, Iterable) else [ids]
    if not all(isinstance(name, str) for name in listed):
        raise ValueError(f"ids must be a name, or a list of names, one per question, got {ids!r}")
    if len(listed) != count or len(set(listed)) != count:
        raise ValueError(f"ids must be {count} different names, got {len(listed)} with {len(set(listed))} different")
    if store is not None:
        for name in listed:
            store.check_new(name, overwrite)
    return list(listed)
