"""Record, and perhaps prune, inside the user's own `generate`: any model object, any script.

A room of its own above `decoding`: it needs what a decode makes (records, options, groups) and nothing of how a decode
runs. What touches the library's attention lookup stays in `attention`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from inspect import signature
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis._util.interrupts import interrupt_at_checks
from visionpulse_analysis.attention import Execution, SelfCheckError
from visionpulse_analysis.attention.routing import Call, check_kernel, overhear
from visionpulse_analysis.decoding import Options, heads_of, layers_of, provenance
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.decoding.watching.generation import Generation
from visionpulse_analysis.decoding.watching.hooks import tell
from visionpulse_analysis.decoding.watching.prompts import Locate, Prompts
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.families import FLOATS, Prompt, UnsupportedModelError, marks_of
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.locate import MeasuredMaps
from visionpulse_analysis.models.prompts import IMAGE, TEXT, VIDEO
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.quantities import Quantity, quantities_of
from visionpulse_analysis.traces.store import TraceStore

__all__ = ["Locate", "SelfCheckError", "Watch", "watch"]

# Under which names `generate` is given what an encoder reads: one of a batch is one prompt.
ENCODED = ("inputs", "input_ids", "pixel_values", "flattened_patches")


@contextmanager
def watch(
    model: Any,
    processor: Any = None,
    *,
    layers: Literal["all", "anchor", "none"] | int | Sequence[int] = "all",
    heads: Literal["mean", "all"] | Sequence[int] = "mean",
    record: Sequence[str | Quantity] = (),
    pruner: Pruner | None = None,
    execution: Execution = "masked",
    seed: int = 0,
    store: TraceStore | None = None,
    ids: Iterable[str] | None = None,
    overwrite: bool = False,
    locate: Locate | None = None,
    images: ImageLike | Sequence[Any] | None = None,
) -> Iterator[Watch]:
    """Record where a model looks while it generates, in whatever way it is made to.

    Inside the ``with`` block every ``model.generate(...)`` (greedy, sampling, beams, assisted, with any cache or none,
    batches, several pictures, through a pipeline, in any thread) leaves one trace for each sequence it returns. The
    kernel of the model makes the output: logits and tokens are those of an unwatched run, bit for bit. Beside it the
    newest query's softmax row is worked out, as the model's own eager function defines it; on the first step of every
    layer that row times the values must give the kernel's output within rounding. Afterwards the model is as it was.

    Parameters
    ----------
    model
        A vision-language model of transformers, in evaluation mode, running under "sdpa" or "eager" attention.
    processor : optional
        Its processor or tokenizer, which turns ids into text; without it tokens are written as their ids.
    layers, heads, record, pruner
        As in :func:`visionpulse_analysis.decode`. "all" means all layers with softmax attention. In layers without it
        (linear attention, convolutions) nothing is hidden: their state keeps the picture.
    execution : "masked" or "gathered"
        Hide dropped patches by the mask of each attention call, or leave their keys and values unread at the steps
        after prefill. Gathered is refused, by the layer's name, where it would be another computation: with a static
        cache, windows, capped logits, sinks, or masks that are added.
    seed : int
        Of pruners that draw; prompt ``i`` of a batch uses ``seed + i``.
    store : TraceStore, optional
        Where traces are also written: as `generate` goes on, each whole as soon as it ends; where rows change places or
        tokens are given up again (beams, assistants), when `generate` returns. One that fails leaves its steps.
    ids : iterable of str, optional
        Names of the traces in the order in which they are made; needed with a store.
    overwrite : bool
        Replace what the store holds under these names.
    locate : callable, optional
        Given the model and the inputs of `generate`, says where the image tokens of each prompt lie: a list of
        PatchGrid. Without it ``grid`` has their positions in the sequence, side by side on a line, and
        ``meta["map"]`` says "no map measured".
    images : optional
        The pictures of the prompts that are generated from: where their tokens lie is then measured by
        :func:`visionpulse_analysis.locate`. An image or a list of images for one prompt; for a batch a list with an
        image or a list of images for each prompt.

    Yields
    ------
    Watch
        Its ``traces`` are a list of Trace, in the order of prompts and of the sequences returned for each.

    Raises
    ------
    ValueError
        The model is in training mode, or cannot be recorded exactly in this way, or an option is out of range; in
        `generate`: the prompt has no image token, is padded on the right, or ids and features differ on where the
        pictures are. The message says what to do. Nothing has been generated then.
    SelfCheckError
        In `generate`: a recorded row does not give what the kernel put out.
    RuntimeError
        The model is watched already, or still generates in another thread when the block is left.

    Examples
    --------
    >>> import visionpulse_analysis as vpa
    >>> vlm = vpa.load("scenes")
    >>> scene = np.zeros((224, 224, 3), np.uint8)
    >>> inputs = vlm.family.batch([vlm.prompt(scene, "how many red circles ?")], padding=0)
    >>> with vpa.watch(vlm.model, vlm.tokenizer, layers=3) as w:
    ...     out = vlm.model.generate(**inputs, max_new_tokens=2)
    >>> w.traces[0].attention.sizes["layer"], w.traces[0].meta["map"]
    (1, 'no map measured')
    """
    vlm = VLM.of(model, processor)
    _check_model(vlm)
    if images is not None:
        if locate is not None:
            raise ValueError("images and locate both say where the image tokens lie; give one of them")
        locate = MeasuredMaps(vlm, processor, images)
    options = Options(layers_of(vlm, layers), heads_of(vlm, heads), pruner, execution, record=quantities_of(record))
    watching = Watch(vlm, options, layers == "all", whole_number(seed, "seed"), _Shelf(store, ids, overwrite), locate)
    with ExitStack() as stack:
        with interrupt_at_checks():
            stack.enter_context(overhear(vlm.model, watching.attend))
            stack.enter_context(tell(vlm.model, watching))
            stack.callback(watching.check_still)
        try:
            yield watching
        finally:
            with interrupt_at_checks():  # Ctrl-C never meets a model half put back
                stack.close()


class Watch:
    """What is seen of one model inside a `watch` block.

    Attributes
    ----------
    traces : list of Trace
    """

    def __init__(self, vlm: VLM, options: Options, every_layer: bool, seed: int, shelf: _Shelf, locate: Locate | None):
        self.traces: list[Trace] = []
        self._vlm, self._options, self._every_layer, self._seed = vlm, options, every_layer, seed
        self._shelf, self._locate = shelf, locate
        self._here = threading.local()  # the generation of each thread
        self._running, self._lock = 0, threading.Lock()

    @property
    def _now(self) -> Generation | None:
        return getattr(self._here, "generation", None)

    # What the hooks tell.

    def attend(self, call: Call) -> tuple[Any, ...]:
        """One attention call of the language part."""
        return call.run() if self._now is None else self._now.attend(call)

    def prepare(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """`generate` is about to run the model on these sequences."""
        ids = args[0] if args else kwargs.get("input_ids")
        if self._now is not None and ids is not None:
            self._now.prepare(ids, kwargs.get("attention_mask"))

    def before(self, kwargs: dict[str, Any]) -> None:
        """A forward pass begins; of a part that runs inside another's, only the outer one counts."""
        if self._now is not None:
            self._here.depth += 1
            if self._here.depth == 1:
                self._now.before(kwargs)

    def after(self, output: Any) -> None:
        """It has ended."""
        if self._now is not None:
            self._here.depth -= 1
            if self._here.depth == 0:
                self._now.after(output)

    def generate(self, part: Any, original: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Stand in for `generate`."""
        if self._now is not None:  # a part of the model that generates for the whole
            return original(*args, **kwargs)
        _check_model(self._vlm)
        prompts = _prompts(self._vlm.model, args, kwargs, self._locate)
        names = self._shelf.take(len(prompts.ids) * _returned(part, kwargs))
        seeds = [self._seed + row for row in range(len(prompts.ids))]
        generation = Generation(self._vlm, self._options, prompts, self._every_layer, seeds)
        config = _configuration(part, kwargs)
        records = _Growing(generation, config, partial(self._records, generation, config, names))
        if self._shelf.store is not None and _row_by_row(kwargs, config):
            generation.went_on = records.grow
        with self._lock:
            self._running += 1
        self._here.generation, self._here.depth = generation, 0
        try:
            # What was compiled before would run past the lookup of attention functions.
            with torch.compiler.set_stance("force_eager") if _compiled(part) else ExitStack():
                out = original(*args, **kwargs)
            records.finish(_sequences(out))
        except BaseException:
            # What was seen so far is worth keeping; what went wrong is worth more.
            with suppress(Exception):
                if _row_by_row(kwargs, config):
                    records.grow(interrupted=True)
            raise
        finally:
            generation.during_forward.close()
            self._here.generation = None
            records.abandon()
            with self._lock:
                self._running -= 1
                self.traces += records.whole
        return out

    def check_still(self) -> None:
        """Raise RuntimeError where a thread still generates."""
        if self._running:
            raise RuntimeError(
                f"the vpa.watch block ends while generate still runs in {self._running} threads, whose traces are "
                "lost; join them inside the block"
            )

    # What becomes of a generation.

    def _records(
        self, generation: Generation, config: dict[str, Any], names: list[str | None], share: int, overwrite: bool
    ) -> list[Record]:
        """An empty record for each sequence, ``share`` of them for each prompt."""
        prompts, records, weights = generation.prompts, [], self._vlm.weights_hash
        for prompt, grid in enumerate(generation.grids):
            given = _prompt(self._vlm, prompts, prompt, grid)
            for row in range(prompt * share, (prompt + 1) * share):
                meta = self._meta(generation, given.question, prompt, config, names[row], weights)
                records.append(Record(
                    self._vlm, given, generation.seeds[prompt], meta, layers=generation.layers or [],
                    heads=self._options.heads, quantities=self._options.record,
                    pruned=self._options.pruner is not None, store=self._shelf.store,
                    overwrite=overwrite or self._shelf.overwrite,
                ))  # fmt: skip
        return records

    def _meta(
        self, generation: Generation, question: str, prompt: int, config: dict[str, Any], name: str | None,
        weights: str,
    ) -> dict[str, Any]:  # fmt: skip
        vlm, options = self._vlm, self._options
        meta: dict[str, Any] = {**({} if name is None else {"id": name}), "question": question}
        drawn = {part: config[part] for part in ("temperature", "top_p", "top_k") if config.get(part) is not None}
        meta |= provenance(vlm, options, generation.seeds[prompt], config.get("max_new_tokens"), weights)
        meta["sample"] = drawn if config.get("do_sample") else None
        meta["end_tokens"] = [vlm.decoder([int(token)]) for token in sorted(_numbers(config["eos_token_id"]))]
        maps = generation.prompts.maps
        given = getattr(self._locate, "told", "given by locate")  # those that measure tell so
        why = "no map measured" if maps is None else maps[prompt]
        meta |= {"prompt": prompt, "map": why if isinstance(why, str) else given}
        others = sorted(set(range(vlm.n_layers)) - set(generation.attention_layers))
        if generation.prompts.crossed:
            meta["cross_attention"] = {
                "layers": generation.attention_layers,
                "note": "pictures are read by cross-attention in these layers, and by no other; positions are those "
                "among the tokens that these layers read, not in the prompt",
            }
        elif others:
            meta["without_attention"] = {
                "layers": others,
                "note": "they have no softmax rows; hiding patches does not clear them from the state of these layers",
            }
        return meta


class _Growing:
    """The records of one generation, each filled as its row goes on, and ended with the row.

    make : gives empty records, so many for each prompt; whether they replace what is stored.
    """

    def __init__(self, generation: Generation, config: dict[str, Any], make: Callable[[int, bool], list[Record]]):
        self.generation, self.config, self.make = generation, config, make
        self.records: list[Record] = []
        self.taken: list[list[int]] = []  # the tokens of each
        self.overwrite = False

    @property
    def whole(self) -> list[Trace]:
        return [record.trace for record in self.records if record.trace is not None]

    def grow(self, interrupted: bool = False) -> None:
        """Take what is known of the running rows: all but the newest token, which may yet be the last."""
        if self.generation.running is None:
            return
        running = self.generation.running.cpu().numpy()
        self._begin(len(running))
        for row, record in enumerate(self.records):
            if not record.over:
                tokens, finished = _ended(running[row], self.config, running=True)
                known = tokens if finished or interrupted else tokens[:-1]
                self._fill(record, row, known, finished if finished else None)

    def finish(self, sequences: torch.Tensor) -> None:
        """Take what `generate` returned."""
        prompts, whole = self.generation.prompts, sequences.cpu().numpy()
        begins = whole.shape[1] >= prompts.length and np.array_equal(
            whole[:, : prompts.length], np.repeat(prompts.ids, len(whole) // len(prompts.ids), axis=0)
        )
        generated = whole[:, prompts.length :] if begins else whole
        ended = [_ended(tokens, self.config) for tokens in generated]
        if any(taken != tokens[: len(taken)].tolist() for taken, (tokens, _) in zip(self.taken, ended, strict=False)):
            self.abandon()  # they went another way than it seemed
            self.records, self.taken, self.overwrite = [], [], True
        self._begin(len(generated))
        for row, (record, (tokens, finished)) in enumerate(zip(self.records, ended, strict=True)):
            if not record.over:
                self._fill(record, row, tokens, finished)

    def abandon(self) -> None:
        """Leave what is not whole as it is."""
        for record in self.records:
            record.abandon()

    def _begin(self, rows: int) -> None:
        if not self.records:
            self.records = self.make(rows // len(self.generation.prompts.ids), self.overwrite)
            self.taken = [[] for _ in self.records]
            for record in self.records:
                record.begin()

    def _fill(self, record: Record, row: int, tokens: np.ndarray, finished: bool | None) -> None:
        """finished : whether the row ended by itself, None where it has not ended."""
        self.generation.fill(record, row, len(self.records), tokens, whole=finished is not None)
        self.taken[row] = tokens.tolist()
        if finished is not None:
            record.finished = finished
            record.end()


class _Shelf:
    """Where traces go, and under which names."""

    def __init__(self, store: TraceStore | None, ids: Iterable[str] | None, overwrite: bool):
        if store is not None and not isinstance(store, TraceStore):
            raise ValueError(f"store must be a TraceStore, got {store!r}; say vpa.TraceStore(path, mode='a')")
        if store is not None and ids is None:
            raise ValueError("writing to a store needs ids, names for the traces in the order in which they are made")
        self.store, self.overwrite = store, overwrite
        self.names = None if ids is None else iter([ids] if isinstance(ids, str) else ids)
        self.lock = threading.Lock()

    def take(self, count: int) -> list[str | None]:
        """The next names; ValueError where there are too few, or one is taken or no name."""
        if self.names is None:
            return [None] * count
        with self.lock:
            taken: list[Any] = list(islice(self.names, count))
        if len(taken) < count:
            raise ValueError(f"generate is to return {count} sequences, and ids has only {len(taken)} names left")
        for name in taken:
            if not isinstance(name, str):
                raise ValueError(f"ids must be names, got {name!r}")
            if self.store is not None:
                self.store.check_new(name, self.overwrite)
        return taken


def _check_model(vlm: VLM) -> None:
    """Raise ValueError for a model whose rows cannot be recorded inside its own `generate`."""
    model, name = vlm.model, type(vlm.model).__name__
    if model.training:
        raise ValueError(f"{name} is in training mode, where dropout changes what is recorded; call model.eval()")
    if not hasattr(model, "prepare_inputs_for_generation"):
        raise UnsupportedModelError(
            f"{name} generates by a method of its own, not token after token: there is no newest token to record"
        )
    if not any("pixel" in given or "patches" in given for given in signature(model.forward).parameters):
        raise UnsupportedModelError(
            f"{name} takes no pictures (its forward has no pixels among its inputs): there are no patches to look at"
        )
    check_kernel(model)


def _prompts(model: Any, args: tuple, kwargs: dict[str, Any], locate: Locate | None) -> Prompts:
    """What `generate` was given; ValueError where it does not say which tokens the prompt has."""
    if getattr(model.config, "is_encoder_decoder", False):
        read = next(
            (given for given in (*args, *(kwargs.get(name) for name in ENCODED)) if torch.is_tensor(given)), None
        )
        if read is None:
            raise ValueError(
                "generate was given no pictures; pass what the processor returns: model.generate(**inputs)"
            )
        return Prompts.of_encoder(model, len(read), kwargs, locate)
    ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    if not torch.is_tensor(ids) or ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            "generate was given no input_ids (int64 [prompt, token]), without which it is not known where the pictures "
            "are; pass what the processor returns: model.generate(**inputs)"
        )
    past, mask = kwargs.get("past_key_values", kwargs.get("cache")), kwargs.get("attention_mask")
    if past is not None and mask is not None and mask.ndim == 2 and mask.shape[1] > ids.shape[1]:
        raise ValueError(
            f"generate was given a cache and only the new {ids.shape[1]} of {mask.shape[1]} tokens; pass input_ids of "
            "the whole sequence beside the cache, so that it is known where the pictures are"
        )
    if kwargs.get("assistant_early_exit") is not None:
        raise ValueError("assistant_early_exit runs the watched model as its own assistant; leave it out, or give an "
                         "assistant_model")  # fmt: skip
    prompts = Prompts.of(model, ids, kwargs, locate)
    if prompts.by_ids:
        prompts.check(model)
        # A prompt read in chunks takes no pictures: its embeddings hold them already.
        whole = past is None and not kwargs.get("prefill_chunk_size")
        if whole and not any(_shows(name, value) for name, value in kwargs.items()):
            raise ValueError(
                f"the prompt has {int(prompts.image.sum())} image tokens, but generate was given no pictures, and they "
                "would be read as words; pass all that the processor returns: model.generate(**inputs)"
            )
    return prompts


def _shows(name: str, value: Any) -> bool:
    """Whether an argument of `generate` may hold pictures: it is named so, or numbers of three axes and more."""
    named = name.startswith(FLOATS) or "patches" in name or "embeds" in name
    return value is not None and (named or (torch.is_tensor(value) and value.is_floating_point() and value.ndim > 2))


def _prompt(vlm: VLM, prompts: Prompts, number: int, grid: PatchGrid) -> Prompt:
    """One of the prompts, without padding."""
    if prompts.crossed:  # pictures are no part of the prompt
        ids = prompts.ids[number]
        words = vlm.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
        kinds = torch.full((len(ids),), TEXT)
        return Prompt(words, torch.from_numpy(ids.copy()), kinds, grid, {}, [], others=np.zeros(0, np.int64))
    start = int(prompts.starts[number])
    image, video, ids = (array[number, start:] for array in (prompts.image, prompts.video, prompts.ids))
    kinds = np.where(video, VIDEO, np.where(image, IMAGE, TEXT))
    words = vlm.tokenizer.decode(ids[~image].tolist(), skip_special_tokens=True).strip()
    others = np.setdiff1d(
        np.flatnonzero(image | np.isin(ids, marks_of(vlm.model.config, vlm.tokenizer))), grid.position
    )
    return Prompt(words, torch.from_numpy(ids.copy()), torch.from_numpy(kinds), grid, {}, [], others=others)


def _configuration(part: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """How `generate` was configured: the arguments over the configuration given, or else the model's own."""
    stated = kwargs.get("generation_config") or getattr(part, "generation_config", None)
    named = {} if stated is None else stated.to_dict()
    names = ("eos_token_id", "pad_token_id", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k",
             "num_return_sequences", "num_beams", "prompt_lookup_num_tokens")  # fmt: skip
    return {name: kwargs[name] if name in kwargs else named.get(name) for name in names}


def _returned(part: Any, kwargs: dict[str, Any]) -> int:
    return int(_configuration(part, kwargs)["num_return_sequences"] or 1)


def _ended(tokens: np.ndarray, config: dict[str, Any], running: bool = False) -> tuple[np.ndarray, bool]:
    """The tokens of one sequence without what fills it up behind its end, and whether it ended by itself.

    running : whether more tokens may come, so that only an end token tells of an end.
    """
    ends = np.atleast_1d(_numbers(config["eos_token_id"]))
    found = np.flatnonzero(np.isin(tokens, ends))
    if len(found):
        return tokens[: found[0] + 1], True
    # Ended by a criterion of the user's, while others went on.
    padding = _numbers(config["pad_token_id"])
    filled = len(tokens) - int((np.isin(tokens[::-1], padding).cumprod()).sum()) if len(padding) else len(tokens)
    filled, limit = max(filled, 1), config["max_new_tokens"]
    return tokens[:filled], not running and (filled < len(tokens) or (limit is not None and filled < limit))


def _row_by_row(kwargs: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether each row of a batch is one sequence to its end, and no token that is read is given up again."""
    others = [kwargs.get(name) for name in ("assistant_model", "custom_generate")]
    return config["num_beams"] in (None, 1) and config["prompt_lookup_num_tokens"] is None and others == [None, None]


def _numbers(given: Any) -> np.ndarray:
    return np.empty(0, np.int64) if given is None else np.atleast_1d(np.asarray(torch.as_tensor(given).cpu()))


def _sequences(out: Any) -> torch.Tensor:
    found = getattr(out, "sequences", out)
    found = found[0] if isinstance(found, tuple) else found
    if not torch.is_tensor(found):
        raise RuntimeError(f"generate returned {type(out).__name__}, in which vpa.watch finds no sequences; its traces "
                           "cannot be made")  # fmt: skip
    return found


def _compiled(model: Any) -> bool:
    """Whether parts of the model are compiled, or `generate` may compile it, as it does on a GPU."""
    compiled = any(part._compiled_call_impl is not None or _is_compiled(part.forward) for part in model.modules())
    return compiled or model.device.type != "cpu"


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable") or hasattr(function, "get_compiler_config")
