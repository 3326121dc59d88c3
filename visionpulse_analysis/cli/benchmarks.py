"""Measure speed and memory: ``bench ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpulse_analysis.cli.base import Json, bench, command, show


@command(bench, "recording")
def bench_recording(
    visual_tokens: Annotated[list[int] | None, typer.Option(help="Square numbers; 1024 and 4096 by default.")] = None,
    steps: int = 24,
    rounds: int = 5,
    as_json: Json = False,
) -> None:
    """What recording costs: plain decoding, recording, and eager output_attentions, side by side."""
    from visionpulse_analysis.benchmarks import recording

    result = recording.bench_recording(visual_tokens or (1024, 4096), steps=steps, rounds=rounds)
    show(result, as_json, recording.format_rows(result))


@command(bench, "store")
def bench_store(
    traces: int = 100_000,
    reads: int = 200,
    folder: Annotated[
        Path | None, typer.Option(help="Fill a store here and keep it; without it, one that is removed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How fast a store of very many traces opens, lists its traces, and gives a step of any of them."""
    from visionpulse_analysis.benchmarks import store

    result = store.bench_store(traces, reads=reads, folder=folder)
    show(result, as_json, store.format_result(result))
