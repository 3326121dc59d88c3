"""What a program sets in torch for all of itself does not reach what is computed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch

from visionpulse_analysis._util.interrupts import interrupt_at_checks

_lock = Lock()
_inside, _before = 0, ExitStack()  # how many threads are in here, and what gives back the settings that they found


@contextmanager
def own_settings(interruptible: bool = False) -> Iterator[None]:
    """Compute with torch's own defaults: whole float32 numbers, on the CPU where no device is named, no autocast.

    Serves as a decorator, too. The user's settings are back when the block ends. The default dtype and how matrix
    products round are one for all threads, so while some are in here they are torch's own for all of them.

    Ctrl-C waits until the user's settings are back, or for the next `check_interrupt`: between two lines of what gives
    them back it would lose them, and leave the lock closed. ``interruptible`` is for what takes long by itself (loading
    a model): there only the changes themselves are safe from it.
    """
    with nullcontext() if interruptible else interrupt_at_checks(), ExitStack() as stack:
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
    global _inside
    with interrupt_at_checks(), _lock:
        if _inside == 0:
            _before.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
            _round_nothing()
        _inside += 1


def _leave() -> None:
    global _inside
    with interrupt_at_checks(), _lock:
        _inside -= 1
        if _inside == 0:
            _before.close()


def _round_nothing() -> None:
    """Have matrix products take float32 as it is, where the user has them round it to TF32 or bfloat16."""
    try:
        asked = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend, by the newer names
        asked = None
    if asked == "highest":
        return
    for backend in (torch.backends.mkldnn, torch.backends.cuda):
        of_backend: Any = getattr(backend, "matmul", None)
        if hasattr(of_backend, "fp32_precision"):  # from torch 2.9 on
            _before.callback(setattr, of_backend, "fp32_precision", of_backend.fp32_precision)
    if asked is not None:
        _before.callback(torch.set_float32_matmul_precision, asked)
    torch.set_float32_matmul_precision("highest")
