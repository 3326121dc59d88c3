"""How fast a store of very many traces is: opening it, listing it, reading a random step of a random trace."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.experiments.bench.machine import about_machine, spread
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces.store import TraceStore


def small_trace(steps: int = 8, layers: int = 2, side: int = 4) -> Trace:
    """A trace of noise: ``side`` x ``side`` patches, with its picture."""
    rng = np.random.default_rng(0)
    grid = PatchGrid.from_grid(range(side * side), rows=side, cols=side, image_sizes=[(8 * side, 8 * side)])
    attention = rng.dirichlet(np.ones(side * side + 1), (steps, layers))[..., :-1]
    return create_trace(
        attention=attention,
        mass=attention.sum(-1),
        tokens=["word"] * steps,
        token_ids=range(steps),
        logprobs=[-0.5] * steps,
        grid=grid,
        layers=range(layers),
        images=[rng.integers(0, 256, (8 * side, 8 * side, 3), dtype=np.uint8)],
        meta={"question": "what ?"},
    )


def bench_store(traces: int = 100_000, *, reads: int = 200, folder: Path | None = None) -> dict[str, Any]:
    """Fill a store and measure it; a folder that holds enough traces from an earlier run is used as it is.

    The first 200 traces go through `TraceStore.add`; the others are byte copies of one of them under
    other names.

    Parameters
    ----------
    traces : 1 or more
    reads : random traces read, each from a store opened for it alone
    folder : where; without one, a temporary folder that is removed

    Returns
    -------
    dict
        ``add_ms`` per trace; ``open_ms``, ``list_ms`` and ``random_step_ms`` (opening the store and reading the
        attention of one step of one random trace), each {"min", "median", "max"}; and ``machine``.
    """
    if traces < 1 or reads < 1:
        raise ValueError(f"traces and reads must be at least 1, got {traces} and {reads}")
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return _measure(Path(temporary) / "store", traces, reads)
    return _measure(folder, traces, reads)


def _measure(folder: Path, traces: int, reads: int) -> dict[str, Any]:
    add_ms = _fill(TraceStore(folder, mode="a"), traces)
    names = [_name(int(number)) for number in np.random.default_rng(0).integers(traces, size=reads)]
    return {
        "traces": traces,
        "machine": about_machine(),
        "add_ms": spread(add_ms) if add_ms else None,
        "open_ms": spread([_ms(lambda: TraceStore(folder)) for _ in range(20)]),
        "list_ms": spread([_ms(lambda: TraceStore(folder).ids) for _ in range(5)]),
        "random_step_ms": spread(
            over(lambda name: _ms(lambda: TraceStore(folder)[name].at(3, 1)), names, "read", "trace")
        ),
    }


def _fill(store: TraceStore, traces: int) -> list[float]:
    trace, there = small_trace(), set(store.finished_ids)
    times = []

    def fill(number: int) -> None:
        name = _name(number)
        if name in there:
            return
        if number < 200:
            named = trace.with_meta({**trace.meta, "id": name})
            times.append(_ms(lambda: store.add(named)))
        else:
            shutil.copytree(store.path / _name(0), store.path / name, copy_function=shutil.copyfile)

    over(fill, range(traces), "fill", "trace")
    return times


def _name(number: int) -> str:
    return f"scene-{number:08d}.scenes.visionpulse.s0.{number:012x}"


def _ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def format_result(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    lines = [f"{result['traces']:,} traces"]
    for name in ("add_ms", "open_ms", "list_ms", "random_step_ms"):
        if result[name]:
            shown = ", ".join(f"{key} {value:.2f}" for key, value in result[name].items())
            lines.append(f"{name.removesuffix('_ms').replace('_', ' '):12} ms: {shown}")
    return "\n".join(lines)
