"""Ctrl-C, and a stop button, held back until a moment at which nothing is half done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, local, main_thread

_pressed = False


class PerThread(local):
    """What each thread has of its own: who asks it to stop, and no part of what it computes."""


_of_thread = PerThread()  # `asked`: what says that this thread shall stop


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


@contextmanager
def stopped_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, `check_interrupt` raises KeyboardInterrupt in this thread, too, as soon as `asked` says so.

    Ctrl-C reaches the main thread alone: this is for what runs in another one, with a button that stops it.
    """
    before, _of_thread.asked = getattr(_of_thread, "asked", None), asked
    try:
        yield
    finally:
        _of_thread.asked = before


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed, or this thread is asked to stop (`stopped_by`)."""
    global _pressed
    asked = getattr(_of_thread, "asked", None)
    if asked is not None and asked():
        raise KeyboardInterrupt
    if _pressed and current_thread() is main_thread():
        _pressed = False
        raise KeyboardInterrupt


def _note(*_: object) -> None:
    global _pressed
    _pressed = True
