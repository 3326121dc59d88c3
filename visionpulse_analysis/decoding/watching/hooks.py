"""Hanging up on a model what tells of its generating, and taking it down again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PAGED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


class Listener(Protocol):
    """What is told of the model."""

    def generate(self, part: Any, original: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Stand in for `generate` of a part of the model, which is ``original``."""

    def prepare(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """`prepare_inputs_for_generation` was called."""

    def before(self, kwargs: dict[str, Any]) -> None:
        """A forward pass of a part that can generate begins, with these inputs."""

    def after(self, output: Any) -> None:
        """It has ended; None after an exception."""


@contextmanager
def tell(model: Any, listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of every `generate` of a model, or of a part of it, inside the ``with`` block.

    Everything is hung up on these objects, not on their classes, and the objects are left as they were.
    """
    undo: list[Callable[[], Any]] = []
    try:
        for part in model.modules():
            if part is model or (hasattr(part, "prepare_inputs_for_generation") and part.can_generate()):
                _hang(part, listener, undo)
        yield
    finally:
        for step in reversed(undo):
            step()


def _hang(part: Any, listener: Listener, undo: list[Callable[[], Any]]) -> None:
    original, prepare = part.generate, part.prepare_inputs_for_generation

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        return listener.generate(part, original, args, kwargs)

    # The library reads from its signature which inputs a model takes.
    @functools.wraps(prepare)
    def told_prepare(*args: Any, **kwargs: Any) -> Any:
        listener.prepare(args, kwargs)
        return prepare(*args, **kwargs)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "paged attention (continuous batching) keeps the keys of all prompts in pages, where no row over one "
            "picture can be read: call model.generate with a left-padded batch, or leave the vpa.watch block first"
        )

    replaced = {"generate": generate, "prepare_inputs_for_generation": told_prepare}
    replaced |= {name: refuse for name in PAGED if hasattr(part, name)}
    for name, function in replaced.items():
        undo.append(functools.partial(_put_back, part, name, part.__dict__.get(name)))
        setattr(part, name, function)
    before = part.register_forward_pre_hook(
        lambda _, args, kwargs: listener.before(_named(args, kwargs)), with_kwargs=True
    )
    undo.append(before.remove)
    after = part.register_forward_hook(lambda _, args, output: listener.after(output), always_call=True)
    undo.append(after.remove)


def _named(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": args[0], **kwargs} if args else kwargs


def _put_back(part: Any, name: str, before: Any) -> None:
    if before is None:
        del part.__dict__[name]
    else:
        setattr(part, name, before)
