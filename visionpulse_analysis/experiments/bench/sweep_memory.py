"""Does a worker's memory stay flat over a long sweep?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionpulse_analysis.experiments.bench.machine import about_machine
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.running import run

FINISHED = re.compile(r"process \d+, (\d+) MB\)$")


def bench_sweep(
    samples: int = 2000,
    *,
    model: str = "scenes",
    cells: int = 4,
    workers: int = 1,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Sweep generated scenes on one worker process, and read its resident memory after every batch from the log.

    Raises ValueError: fewer than 4 samples; RuntimeError: a sample failed.

    Parameters
    ----------
    samples : 4 or more; dense and pruned by turns, 8 rows at a time
    model : As of `load`
    cells : size of the scenes; 4 gives 64 visual tokens
    workers : 1 or 0
        0: no process of its own; the memory is then that of this one.

    Returns
    -------
    dict
        ``memory_mb``: of the worker after each quarter of the samples, and at first (after the first twentieth);
        ``growth_mb_per_1000``: slope over the second half, in MB per 1,000 samples; ``samples_per_second``; and
        ``machine``.
    """
    if samples < 4:
        raise ValueError(f"samples must be at least 4, got {samples}")
    with tempfile.TemporaryDirectory() as folder:
        plain = {
            "out": str(Path(folder) / "sweep"),
            "samples": {"scenes": {"n": -(-samples // 2), "cells": cells, "tasks": ["find"]}},
            "models": [model],
            "pruners": ["dense", {"name": "visionpulse", "budget": 0.05}],
            "decode": {"batch_size": 8, "max_new_tokens": 64, "layers": "all"},
        }
        summary = run(SweepConfig.from_plain(plain, folder=Path(folder)), workers=workers, report=report)
        log = (Path(summary.folder) / "sweep.log").read_text("utf-8").splitlines()
    memory = np.array([float(found[1]) for line in log if (found := FINISHED.search(line))])
    if summary.failed or len(memory) != summary.planned:
        raise RuntimeError(f"{summary.failed} of {summary.planned} samples failed; the memory says nothing then")
    half = len(memory) // 2
    places = {"at first": len(memory) // 20, **{f"{25 * n} %": n * len(memory) // 4 - 1 for n in (1, 2, 3, 4)}}
    return {
        "samples": summary.planned,
        "visual_tokens": (2 * cells) ** 2,
        "memory_mb": {name: memory[place] for name, place in places.items()},
        "growth_mb_per_1000": 1000 * float(np.polyfit(np.arange(half, len(memory)), memory[half:], 1)[0]),
        "samples_per_second": summary.planned / summary.seconds,
        "machine": about_machine(),
    }


def format_result(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    memory = ", ".join(f"{name} {value:.0f}" for name, value in result["memory_mb"].items())
    return (
        f"{result['samples']:,} samples, {result['samples_per_second']:.1f} a second; worker's memory in MB: {memory}\n"
        f"growth over the second half: {result['growth_mb_per_1000']:+.1f} MB per 1,000 samples"
    )
