"""Measure speed and memory: ``bench ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis.cli.base import Json, bench, command, show

Save = Annotated[Path | None, typer.Option(help="Also keep the result, with machine, versions and date, here.")]


@command(bench, "decode")
def bench_decode(
    visual_tokens: Annotated[
        list[int] | None, typer.Option(help="Contexts; 1024, 8192, 16384 and 32768 by default.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows per step; 1 and 8 by default.")] = None,
    size: Annotated[str, typer.Option(help='"small" or "qwen3-vl-4b".')] = "small",
    rounds: int = 12,
    device: Annotated[str | None, typer.Option(help='"cpu" or "cuda"; CUDA where there is one.')] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only these; all by default.")] = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """What one decode step costs: the library's, ours dense and pruned, and the least that memory allows."""
    from visionpulse_analysis.benchmarks import decode, synthetic

    options: dict[str, Any] = {"size": size, "rounds": rounds, "device": device}
    result = decode.bench_decode(
        visual_tokens or decode.VISUAL_TOKENS,
        batch or (1, 8),
        variants=variant or synthetic.VARIANTS,
        report=lambda line: typer.echo(line, err=True),
        **options,
    )
    _finish(result, decode.format_rows(result), save, as_json)


@command(bench, "batch")
def bench_batch(
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; 1, 8 and 32 by default.")] = None,
    samples: int = 96,
    rounds: int = 3,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """How many samples a second the bundled model decodes, one by one and together, recorded and not."""
    from visionpulse_analysis.benchmarks import batch as together

    result = together.bench_batch(
        batch or (1, 8, 32), samples=samples, rounds=rounds, report=lambda line: typer.echo(line, err=True)
    )
    _finish(result, together.format_rows(result), save, as_json)


@command(bench, "recording")
def bench_recording(
    visual_tokens: Annotated[list[int] | None, typer.Option(help="Square numbers; 1024 and 4096 by default.")] = None,
    steps: int = 24,
    rounds: int = 5,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """What recording costs: plain decoding, recording, and eager output_attentions, side by side."""
    from visionpulse_analysis.benchmarks import recording

    result = recording.bench_recording(visual_tokens or (1024, 4096), steps=steps, rounds=rounds)
    _finish(result, recording.format_rows(result), save, as_json)


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


def _finish(result: dict[str, Any], table: str, save: Path | None, as_json: bool) -> None:
    from visionpulse_analysis.benchmarks.machine import write_result

    if save is not None:
        write_result(result, save)
    show(result, as_json, table)
