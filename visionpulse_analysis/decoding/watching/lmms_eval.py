"""lmms-eval under watch: its own model classes, tasks and scores, with a trace of every answer.

lmms-eval makes its model itself and hands documents to it in an order of its own. So its model class is replaced by one
of the same name that is watched while it answers, and which document an answer is for is told by the documents that it
looked up before.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.attention import Execution
from visionpulse_analysis.decoding.watching import Watch, watch
from visionpulse_analysis.decoding.watching.prompts import Prompts
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces.store import TraceStore

__all__ = ["LmmsEval", "watch_lmms_eval"]

ANSWERS = ("generate_until", "generate_until_multi_round", "generate_visual_cot")
PROCESSORS = ("processor", "_processor", "_image_processor", "tokenizer", "_tokenizer")


class LmmsEval:
    """What `watch_lmms_eval` has seen.

    Attributes
    ----------
    ids : list of str
        Of the traces written, in the order of the answers: ``TASK-SPLIT-DOCUMENT`` behind the prefix; a second answer
        to the same document (rounds, repeats) is ``TASK-SPLIT-DOCUMENT.1``.
    without_picture : list of str
        Of documents without a picture: they were answered unwatched, and nothing was pruned.
    error : Exception or None
        What was raised in a model class; lmms-eval itself only prints it.
    """

    def __init__(self, store: TraceStore, prefix: str, options: dict[str, Any]):
        self.ids: list[str] = []
        self.without_picture: list[str] = []
        self.error: Exception | None = None
        self._store, self._prefix, self._options = store, prefix, options
        self._answered: dict[str, int] = {}
        self._looked_up: list[str] = []  # since the last answer, by the thread that generates
        self._ahead: deque[str] = deque()  # by others, which prepare the batches to come
        self._thread = 0
        self._names: deque[str] = deque()
        self._watching = False

    def answer(self, lm: Any, original: Callable[..., Any], requests: Sequence[Any]) -> Any:
        """Let a model class answer ``requests`` under watch."""
        if self._watching:  # one way of answering may use another
            return original(requests)
        if getattr(lm, "world_size", 1) > 1:
            raise ValueError(
                f"lmms-eval runs in {lm.world_size} processes, and their traces would meet in one store; run one "
                "process, with device_map=auto in --model_args where the model needs several GPUs"
            )
        documents, lm.task_dict = lm.task_dict, {name: _Splits(name, task, self._note) for name, task in
                                                 lm.task_dict.items()}  # fmt: skip
        self._watching, self._thread = True, threading.get_ident()
        self._looked_up.clear()
        self._ahead.clear()
        try:
            plain = lm.model.generate
            with watch(lm.model, _processor(lm), store=self._store, ids=self._take(), **self._options) as seen:
                with in_place_of(lm.model, "generate", self._generate(lm.model, plain, seen)):
                    answers = original(requests)
            # Some model classes print an error and go on with an empty answer, which would be scored.
            if self.error is not None:
                raise self.error
            if self._ahead:
                raise ValueError(
                    f"{type(lm).__name__} of lmms-eval looked up {len(self._ahead)} documents more than it answered, "
                    f"beginning with {self._ahead[0]}; which trace is of which document is not known: delete the traces"
                )
        except Exception as error:
            self.error = error
            raise
        finally:
            self._watching, lm.task_dict = False, documents
        return answers

    def _note(self, task: str, split: str, document: int) -> None:
        name = self._prefix + re.sub(r"[^A-Za-z0-9._-]", "_", f"{task}-{split}-{document}")
        (self._looked_up if threading.get_ident() == self._thread else self._ahead).append(name)

    def _generate(self, model: Any, plain: Callable[..., Any], seen: Watch) -> Callable[..., Any]:
        """Stand in for `generate` of the watched ``model``; ``plain`` is that of the model not watched."""
        watched = model.generate

        def generate(*args: Any, **kwargs: Any) -> Any:
            if self.error is not None:  # the model class went on after it
                raise self.error
            seen.traces.clear()  # they are in the store
            ids = args[0] if args else kwargs.get("input_ids")
            try:
                if ids is None:
                    return watched(*args, **kwargs)
                prompts = Prompts.of(model, ids, kwargs, None)
                names = self._of_rows(len(ids))
                if prompts.by_ids and not prompts.image.any():
                    self.without_picture += names
                    return plain(*args, **kwargs)
                self._names = deque(names)
                out = watched(*args, **kwargs)
                self.ids += names
                return out
            except Exception as error:
                self.error = error
                raise

        return generate

    def _of_rows(self, rows: int) -> list[str]:
        """Names for the rows of a batch, from the documents that were looked up for it."""
        given, self._looked_up = self._looked_up, []
        if not given:
            given = [self._ahead.popleft() for _ in range(min(rows, len(self._ahead)))]
        documents = given if len(given) == rows else list(dict.fromkeys(given))
        if len(documents) != rows:
            raise ValueError(
                f"the model class generates {rows} answers after looking up {len(documents)} documents "
                f"({', '.join(documents[:4])}), and which is for which is not known; try --batch_size 1"
            )
        names = []
        for document in documents:
            count = self._answered.get(document, 0)
            self._answered[document] = count + 1
            names.append(f"{document}.{count}" if count else document)
        return names

    def _take(self) -> Iterator[str]:
        while self._names:
            yield self._names.popleft()


@contextmanager
def watch_lmms_eval(
    store: TraceStore,
    *,
    pruner: Pruner | None = None,
    layers: Literal["all", "anchor", "none"] | int | Sequence[int] = "all",
    heads: Literal["mean", "all"] | Sequence[int] = "mean",
    execution: Execution = "masked",
    seed: int = 0,
    prefix: str = "",
    overwrite: bool = False,
) -> Iterator[LmmsEval]:
    """Watch every model that lmms-eval makes inside the ``with`` block, and prune in it.

    Prompts, batches, options of `generate`, answers and scores are those of lmms-eval; without a pruner they are those
    of a plain run. A model class is watched that holds a model of transformers as ``model`` and calls its `generate`.

    Parameters
    ----------
    store : TraceStore
        Takes one trace for each answer, named as `LmmsEval.ids` says.
    pruner, layers, heads, execution, seed, overwrite
        As in :func:`visionpulse_analysis.watch`.
    prefix : str
        Beginning of the names, so that one store holds several runs.

    Yields
    ------
    LmmsEval

    Raises
    ------
    ModuleNotFoundError
        lmms-eval is not installed.
    ValueError
        In lmms-eval, as `watch` does; or the model class cannot be watched, a batch cannot be told apart into
        documents, or lmms-eval is to take answers from its cache, which knows nothing of pruners.

    Examples
    --------
    >>> import visionpulse_analysis as vpa
    >>> import lmms_eval.evaluator  # doctest: +SKIP
    >>> with vpa.watch_lmms_eval(vpa.TraceStore("traces", mode="a")) as seen:  # doctest: +SKIP
    ...     results = lmms_eval.evaluator.simple_evaluate("qwen2_5_vl", tasks=["chartqa"], limit=8, batch_size=1)
    """
    try:
        evaluator, models = import_module("lmms_eval.evaluator"), import_module("lmms_eval.models")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"lmms-eval cannot be imported ({error}); pip install lmms-eval") from error
    if not isinstance(store, TraceStore):
        raise ValueError(f"store must be a TraceStore, got {store!r}; say vpa.TraceStore(path, mode='a')")
    options = {"pruner": pruner, "layers": layers, "heads": heads, "execution": execution}
    options["seed"] = whole_number(seed, "seed")
    store.check_new(f"{prefix}-", overwrite=True)  # a prefix that no name may begin with is known now
    state = LmmsEval(store, prefix, {**options, "overwrite": overwrite})
    get_model = models.get_model

    def watched_model(*args: Any, **kwargs: Any) -> type:
        return _watched(get_model(*args, **kwargs), state)

    with (
        in_place_of(models, "get_model", watched_model),
        in_place_of(evaluator.ResponseCache, "create", staticmethod(_no_cache)),
    ):
        yield state


def _watched(kind: type, state: LmmsEval) -> type:
    """A class of the same name whose answers are watched."""

    def watched(name: str) -> Callable[..., Any]:
        def answer(self: Any, requests: Sequence[Any]) -> Any:
            _check(self)
            return state.answer(self, getattr(super(made, self), name), requests)

        return answer

    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    made = type(kind.__name__, (kind,), {**named, **{name: watched(name) for name in ANSWERS}})
    return made


def _check(lm: Any) -> None:
    if not callable(getattr(getattr(lm, "model", None), "generate", None)):
        raise ValueError(
            f"{type(lm).__name__} of lmms-eval holds no model of transformers as .model (it asks a server, or runs "
            "another engine); choose a class that does, such as qwen2_5_vl, qwen3_vl, llava_hf or huggingface"
        )


def _processor(lm: Any) -> Any:
    found = (getattr(lm, name, None) for name in PROCESSORS)
    return next((one for one in found if hasattr(getattr(one, "tokenizer", one), "decode")), None)


def _no_cache(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "lmms-eval's cache of answers (--use_cache) does not know of pruners: it would give the answers of another "
        "run, and no traces; leave it out"
    )


@contextmanager
def in_place_of(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Let ``owner.name`` be another one inside the ``with`` block."""
    before, missing = vars(owner).get(name), name not in vars(owner)
    setattr(owner, name, other)
    try:
        yield
    finally:
        if missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class _Splits:
    """The splits of a task's documents, which tells of each document that is looked up."""

    def __init__(self, task: str, splits: Any, note: Callable[[str, str, int], None]):
        self._task, self._splits, self._note = task, splits, note

    def __getitem__(self, split: str) -> Any:
        return _Documents(self._splits[split], lambda document: self._note(self._task, split, document))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._splits, name)


class _Documents:
    """One of them."""

    def __init__(self, documents: Any, note: Callable[[int], None]):
        self._documents, self._note = documents, note

    def __getitem__(self, document: Any) -> Any:
        if isinstance(document, int):
            self._note(document)
        return self._documents[document]

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._documents)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._documents, name)
