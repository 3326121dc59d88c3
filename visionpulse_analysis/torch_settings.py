"""What a program sets in torch for all of itself does not reach what is computed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

_lock = Lock()
_inside, _before = 0, torch.float32  # how many threads are in here, and the default dtype that they found


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute with torch's own defaults: float32 numbers, on the CPU where no device is named, no autocast.

    Serves as a decorator, too. The user's settings are back when the block ends. The default dtype is one for all
    threads, so while some are in here it is float32 for all of them.
    """
    with ExitStack() as stack:
        # As a mode, a default device costs time at every operation: it is changed only where the user did.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        _enter()
        stack.callback(_leave)
        yield


def _enter() -> None:
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            torch.set_default_dtype(_before)
