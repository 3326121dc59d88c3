"""Forward hooks on the layers of the language model, for as long as a ``with`` block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Watcher(Protocol):
    """What is told of every layer: states [row, token, width] that enter it, and those that leave it."""

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> torch.Tensor | None:
        """New states to read instead, or None."""
        ...

    def leave(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """New states to hand on instead, or None."""
        ...


@contextmanager
def watch_layers(model: Any, watcher: Watcher, needed: bool = True) -> Iterator[None]:
    """Tell ``watcher`` what enters and leaves each decoder layer inside the ``with`` block.

    Raises ValueError for a model whose language part does not list its ``layers``, unless that is not ``needed``.
    """
    layers = getattr(model.get_decoder(), "layers", None if needed else ())
    if layers is None:
        raise ValueError(f"{type(model).__name__} does not list its decoder layers; decode without a prefill pruner")
    handles = []
    try:
        for number, block in enumerate(layers):
            handles.append(block.register_forward_pre_hook(_entering(watcher, number), with_kwargs=True))
            handles.append(block.register_forward_hook(_leaving(watcher, number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(watcher: Watcher, number: int):
    def hook(block: Any, args: tuple, options: dict[str, Any]) -> Any:
        states = watcher.enter(number, block, args[0] if args else options["hidden_states"])
        if states is None:
            return None
        return ((states, *args[1:]), options) if args else (args, {**options, "hidden_states": states})

    return hook


def _leaving(watcher: Watcher, number: int):
    def hook(block: Any, args: tuple, output: Any) -> Any:
        bare = not isinstance(output, tuple)
        states = watcher.leave(number, output if bare else output[0])
        return None if states is None else states if bare else (states, *output[1:])

    return hook
