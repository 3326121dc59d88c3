"""Calls in processes of their own, several at a time; the first failure stops them all."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

DONE, FAILED, TOLD = "done", "failed", "told"


def call_each(
    function: Callable[..., Any], items: Sequence[Any], jobs: int, told: Callable[[int, Any], object] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (index, ``function(item)``) as the calls finish, at most ``jobs`` at a time, started in order.

    The cores are shared out: each process computes with its part of the threads, unless ``OMP_NUM_THREADS`` is set.
    With ``told`` the calls are ``function(item, tell)``, and what one tells arrives here as ``told(index, what)``.
    Raises Exception: what the first failing call raised; the calls still running are stopped; RuntimeError: a process
    died without an answer.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(items))[::-1]
    running: dict[Any, tuple[int, Any]] = {}
    with _threads(max(1, available_cores() // jobs)):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    index, item = waiting.pop()
                    answer, sender = context.Pipe(duplex=False)
                    process = context.Process(
                        target=_answer, args=(sender, function, item, told is not None), daemon=False
                    )
                    process.start()
                    sender.close()
                    running[answer] = index, process
                for answer in wait(list(running)):
                    index, process = running[answer]
                    kind, value = _received(answer, process)
                    if kind == TOLD and told is not None:
                        told(index, value)
                        continue
                    del running[answer]
                    process.join()
                    if kind == FAILED:
                        raise value
                    yield index, value
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _received(answer: Any, process: Any) -> tuple[str, Any]:
    try:
        return answer.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"a process died with exit code {process.exitcode}, most often because memory ran out: use fewer jobs"
        ) from None


def _answer(sender: Connection, function: Callable[..., Any], item: Any, tells: bool) -> None:
    try:
        sender.send((DONE, function(item, lambda what: sender.send((TOLD, what))) if tells else function(item)))
    except Exception as error:
        sender.send((FAILED, error))


@contextmanager
def _threads(each: int) -> Iterator[None]:
    """Children started meanwhile read this variable; a value that the user set stays."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(each)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
