"""Models that read pictures by cross-attention: which of their attention calls run over keys of another sequence.

No type is known by name. A module crosses when it is handed the states of another sequence under one of the names that
the library uses for them; from then on it does, also where later steps find these keys in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from visionpulse_analysis.models.locating.entering import can_cross, other_sequence


class Crossing:
    """The modules of a decoder that have crossed, and how long the other sequence is.

    Attributes
    ----------
    possible : bool
        Whether the decoder has modules that can.
    length : int
        Tokens of the other sequence; 0 until a module has crossed.
    """

    def __init__(self, model: Any):
        candidates = [part for part in model.get_decoder().modules() if can_cross(part)]
        self.possible, self.length = bool(candidates), 0
        self._candidates, self._numbers = candidates, dict[torch.nn.Module, int]()

    def __contains__(self, module: torch.nn.Module) -> bool:
        return module in self._numbers

    def layer(self, module: torch.nn.Module) -> int:
        """Which layer a module that has crossed belongs to; where it does not say, it is counted among those."""
        return self._numbers[module]

    @contextmanager
    def looked_for(self) -> Iterator[None]:
        """Inside the ``with`` block modules that cross are noted."""
        hooks = [part.register_forward_pre_hook(self._note, with_kwargs=True) for part in self._candidates]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, module: torch.nn.Module, args: tuple, options: dict[str, Any]) -> None:
        if module in self._numbers:
            return
        found = other_sequence(module, args, options)
        if found is not None:
            number = getattr(module, "layer_idx", None)
            self.length = found.shape[1]
            self._numbers[module] = len(self._numbers) if number is None else number
