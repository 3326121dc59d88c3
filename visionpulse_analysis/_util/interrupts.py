"""Ctrl-C, held back until a moment at which nothing is half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

_pressed = False


@contextmanager
def interrupt_at_checks() -> Iterator[None]:
    """Inside the block, Ctrl-C takes effect in `check_interrupt` or at the end of the block, and nowhere else.

    Only Python's own handling of SIGINT is replaced, which lives in the main thread: a program that handles the
    signal in another way keeps its way, and other threads never see it. Blocks may nest; the outermost counts.
    """
    global _pressed
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _pressed = False
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        check_interrupt()


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed."""
    global _pressed
    if _pressed and current_thread() is main_thread():
        _pressed = False
        raise KeyboardInterrupt


def _note(*_: object) -> None:
    global _pressed
    _pressed = True
