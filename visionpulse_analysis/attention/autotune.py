"""Which of several ways to compute the same thing is the fastest here: tried once for every case, then known."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from visionpulse_analysis._util.fingerprints import Remembered

CALLS, ROUNDS = 10, 3
LOST = getattr(torch, "AcceleratorError", ())  # after it nothing runs on that device any more
measured: dict[Hashable, dict[str, float]] = Remembered()  # by case, seconds a call of each way that works
failed: dict[tuple[str, torch.device], str] = Remembered()  # ways that do not work on a device, and why
logger = logging.getLogger(__name__)


def run_fastest(case: Hashable, ways: Mapping[str, Callable[[], Any]], device: torch.device) -> Any:
    """What the fastest of some equivalent ``ways`` returns, on a GPU.

    The first of them must work. Another one that fails is warned of, and not tried on that device again. Where memory
    is too short for one of them nothing is timed, and the next call with that ``case`` tries again.
    """
    if case not in measured:
        working, short = _try(ways, device)
        if short is not None:
            if not working:
                raise short
            return ways[working[0]]()
        measured[case] = {name: min(_seconds(ways[name], device) for _ in range(ROUNDS)) for name in working}
    seconds = measured[case]
    return ways[min(seconds, key=seconds.__getitem__)]()


def tried() -> dict[str, dict[str, Any]]:
    """All of it, JSON-ready: by case the milliseconds of each way, and the ways that do not work, with the reason."""
    ms = {str(case): {way: 1e3 * taken for way, taken in seconds.items()} for case, seconds in measured.items()}
    return {"ms": ms, "failed": {f"{way} on {device}": why for (way, device), why in failed.items()}}


def _try(
    ways: Mapping[str, Callable[[], Any]], device: torch.device
) -> tuple[list[str], torch.OutOfMemoryError | None]:
    """The ways that work, and the error of one that needed more memory than there was."""
    first, working, short = next(iter(ways)), [], None
    for name, way in ways.items():
        if (name, device) in failed:
            continue
        try:
            way()
            torch.accelerator.synchronize(device)
            working.append(name)
        except torch.OutOfMemoryError as error:
            short = error
        except LOST:
            raise
        except Exception as error:  # a compiler can fail in many ways, and the first way still answers
            if name == first:
                raise
            failed[name, device] = str(error)
            logger.warning("%s attention does not work on %s and is not used: %s", name, device, error)
    return working, short


def _seconds(way: Callable[[], Any], device: torch.device) -> float:
    """One call's share of some in a row, so that launching and computing overlap as they do while decoding.

    What they read is warm, unlike in a decode: the difference between two ways is that of their work.
    """
    torch.accelerator.synchronize(device)
    started = time.perf_counter()
    for _ in range(CALLS):
        way()
    torch.accelerator.synchronize(device)
    return (time.perf_counter() - started) / CALLS
