"""Which of several ways to compute the same thing is the fastest here: tried once for every shape, then known."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

CALLS, ROUNDS = 10, 3
measured: dict[Hashable, dict[str, float]] = {}  # seconds a call of each way that works
logger = logging.getLogger(__name__)


def run_fastest(case: Hashable, ways: Mapping[str, Callable[[], Any]], device: torch.device) -> Any:
    """What the fastest of some equivalent ``ways`` returns, for a ``case`` of that name, on a GPU.

    The first of them must work; another one that fails is warned of once, and not used for this case.
    """
    if case not in measured:
        measured[case] = _measure(case, ways, device)
    seconds = measured[case]
    return ways[min(seconds, key=seconds.__getitem__)]()


def _measure(case: Hashable, ways: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    first, working = next(iter(ways)), {}
    for name, way in ways.items():
        try:
            way()
            torch.accelerator.synchronize(device)
            working[name] = way
        except Exception as error:  # a compiler can fail in many ways, and the first way still answers
            if name == first:
                raise
            logger.warning("%s attention does not work for %s and is not used: %s", name, case, error)
    if len(working) == 1:
        return {first: 0.0}
    seconds = {name: [_seconds(way, device) for _ in range(ROUNDS)] for name, way in working.items()}
    return {name: min(taken) for name, taken in seconds.items()}


def _seconds(way: Callable[[], Any], device: torch.device) -> float:
    """One call's share of some in a row, so that launching and computing overlap as they do while decoding."""
    torch.accelerator.synchronize(device)
    started = time.perf_counter()
    for _ in range(CALLS):
        way()
    torch.accelerator.synchronize(device)
    return (time.perf_counter() - started) / CALLS
