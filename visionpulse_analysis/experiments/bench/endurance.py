"""Do many decodes in one process, or a long sweep, leave anything behind?"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from visionpulse_analysis._util.progress import advance, bar
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.experiments.bench.machine import about_machine
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.running import run
from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.pruners import VisionPulse
from visionpulse_analysis.traces.store import TraceStore

PARTS, WARM = 5, 200
QUESTION = "where ?"


def bench_endurance(
    decodes: int = 10_000, *, warm: int | None = None, vlm: VLM | None = None, report: Callable[[str], object] = print
) -> dict[str, Any]:
    """Decode many times, two tokens each, and count before and after each fifth of them all that could grow.

    By turns: dense; pruned and masked, streamed to a store; pruned and gathered; two rows together, sampled. Raises
    ValueError: fewer than 5 decodes.

    Parameters
    ----------
    decodes : 5 or more
    warm : so many more come first and fill caches; 200 without it
    vlm : the bundled model without one

    Returns
    -------
    dict
        ``moments``: what `state` counts, after so many decodes; ``grown``: the last less the first; ``steady``: the
        growth per decode in that fifth which grew least, as what is kept of every decode grows in all of them, and
        caches fill in some; ``seconds``; and ``machine``.
    """
    if decodes < PARTS:
        raise ValueError(f"decodes must be at least {PARTS}, got {decodes}")
    vlm = load("scenes") if vlm is None else vlm
    warm = WARM if warm is None else warm
    start, moments = time.perf_counter(), []
    counted = {round(part * decodes / PARTS) for part in range(PARTS + 1)}
    with tempfile.TemporaryDirectory() as folder, bar(warm + decodes, "bench", "decode"):
        store = TraceStore(Path(folder) / "store", mode="a")
        for number in range(-warm, decodes + 1):
            if number in counted:
                moments.append({"decodes": number, **state(vlm)})
                report(f"{number} decodes: {moments[-1]}")
            if number < decodes:
                _one(vlm, number % 4, store)
                advance("decode")
    said = [name for name, value in moments[0].items() if value is not None and name != "decodes"]
    return {
        "decodes": decodes,
        "moments": moments,
        "grown": {name: moments[-1][name] - moments[0][name] for name in said},
        "steady": {
            name: min((b[name] - a[name]) / (b["decodes"] - a["decodes"]) for a, b in pairwise(moments))
            for name in said
        },
        "seconds": time.perf_counter() - start,
        "machine": about_machine(str(vlm.model.device.type)),
    }


def _one(vlm: VLM, kind: int, store: TraceStore) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    options: dict[str, Any] = {"max_new_tokens": 2, "layers": "anchor"}
    if kind in (1, 2):
        options |= {"pruner": VisionPulse(budget=0.2), "execution": ("masked", "gathered")[kind - 1]}
    if kind == 1:
        options |= {"store": store, "ids": "a", "overwrite": True}
    if kind == 3:
        decode(vlm, picture, [QUESTION, f"is it {QUESTION}"], sample=Sample(0.7), **options)
    else:
        decode(vlm, picture, QUESTION, **options)


def state(vlm: VLM) -> dict[str, int | None]:
    """Everything that could grow from decode to decode, counted.

    ``blocks``: small pieces of memory that Python holds; ``bytes``: larger ones, tensors among them, None where the C
    library does not say; ``resident_mb``: also what the allocator keeps for later, None where there is no /proc.
    """
    gc.collect()
    modules = list(vlm.model.modules())
    hung = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    files = Path("/proc/self/fd")
    return {
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "bytes": allocated(),
        "hooks": sum(len(getattr(module, name)) for module in modules for name in hung),
        "attributes": sum(len(vars(module)) for module in modules),
        "attention_functions": len(AttentionInterface._global_mapping),
        "mask_functions": len(AttentionMaskInterface._global_mapping),
        "intercepted_modules": len(attention._interceptors),
        "threads": threading.active_count(),
        "files": len(list(files.iterdir())) if files.exists() else None,
        "resident_mb": _resident(),
    }


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def allocated() -> int | None:
    """Bytes that were asked of the C library and not given back: exact, whatever the allocator keeps for later."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc has it since 2.33
    if ask is None:
        return None
    ask.restype = _Mallinfo2
    found = ask()
    return int(found.uordblks + found.hblkhd)


def _resident() -> int | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 // 10**6 if statm.exists() else None


def format_result(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    grown, steady = (
        ", ".join(f"{name} {value:+,.{digits}f}" for name, value in result[kind].items() if value)
        for kind, digits in (("grown", 0), ("steady", 2))
    )
    return (
        f"{result['decodes']:,} decodes in {result['seconds']:.0f} s; grown: {grown or 'nothing'}\n"
        f"steadily, per decode: {steady or 'nothing'}"
    )


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


def format_sweep(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    memory = ", ".join(f"{name} {value:.0f}" for name, value in result["memory_mb"].items())
    return (
        f"{result['samples']:,} samples, {result['samples_per_second']:.1f} a second; worker's memory in MB: {memory}\n"
        f"growth over the second half: {result['growth_mb_per_1000']:+.1f} MB per 1,000 samples"
    )
