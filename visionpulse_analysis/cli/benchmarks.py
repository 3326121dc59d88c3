"""Measure speed and memory: ``bench ...``; each command gives a result and its table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis._util import ledger
from visionpulse_analysis.cli.base import (
    Count,
    Json,
    Load,
    Model,
    bench,
    command,
    loads_model,
    show,
    told,
    with_options,
)

Measured = tuple[dict[str, Any], str]
Save = Annotated[
    Path | None, typer.Option(help="Also keep the result, with command, machine, versions and date, here.")
]


def measures(name: str) -> Callable:
    """Register a benchmark with the options ``--save`` and ``--json``."""

    def register(function: Callable[..., Measured]) -> Callable:
        @wraps(function)
        def run(*, save: Path | None, as_json: bool, **options: Any) -> None:
            result, table = function(**options)
            result = {"command": " ".join(ledger.command or []), **result}
            if save is not None:
                from visionpulse_analysis.experiments.bench.machine import write_result

                write_result(result, save)
            show(result, as_json, table)

        given = inspect.signature(function, eval_str=True).parameters
        return command(bench, name)(with_options(run, given, {"save": (Save, None), "as_json": (Json, False)}))

    return register


@measures("decode")
def bench_decode(
    visual_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Contexts; 1024, 8192, 16384 and 32768 by default.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows per step; 1 and 8 by default.")] = None,
    size: Annotated[str, typer.Option(help='"small" or "qwen3-vl-4b".')] = "small",
    rounds: Count = 12,
    device: Annotated[str | None, typer.Option(help='"cpu" or "cuda"; CUDA where there is one.')] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help='Only these; all by default, on a GPU with "flash", its dense kernel.')
    ] = None,
) -> Measured:
    """What one decode step costs: the library's, ours dense and pruned, and the least that memory allows."""
    from visionpulse_analysis.experiments.bench.machine import check_names
    from visionpulse_analysis.models import finding

    check_names(size, variant or ())
    finding.check_names(device=device)
    from visionpulse_analysis.experiments.bench import decode

    options: dict[str, Any] = {"size": size, "rounds": rounds, "device": device}
    result = decode.bench_decode(
        visual_tokens or decode.VISUAL_TOKENS,
        batch or (1, 8),
        variants=variant or None,
        report=told,
        **options,
    )
    return result, decode.format_rows(result)


@measures("end-to-end")
def bench_end_to_end(
    visual_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Lengths of the image; 8192, 16384 and 32768 by default.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows; 8 by default.")] = None,
    text_tokens: Count = 256,
    steps: Count = 1024,
    block_size: Annotated[int, typer.Option(min=1, help="Of the pruned variant, visionpulse:block.")] = 64,
    prefill_chunk: Annotated[int, typer.Option(min=0, help="Tokens that prefill reads at once; 0: all.")] = 1024,
    size: Annotated[str, typer.Option(help='"tiny", "small" or "qwen3-vl-4b".')] = "qwen3-vl-4b",
    rounds: Count = 2,
    device: Annotated[str | None, typer.Option(help='"cpu" or "cuda"; CUDA where there is one.')] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only these; stock, dense and block by default.")] = None,
) -> Measured:
    """What a whole answer costs, prefill and all steps, at the settings of the paper's authors."""
    from visionpulse_analysis.experiments.bench.machine import check_names
    from visionpulse_analysis.models import finding

    check_names(size, [name for name in variant or () if name != "block"])
    finding.check_names(device=device)
    from visionpulse_analysis.experiments.bench import end_to_end

    result = end_to_end.bench_end_to_end(
        visual_tokens or end_to_end.VISUAL_TOKENS,
        batch or (8,),
        text_tokens=text_tokens,
        steps=steps,
        block_size=block_size,
        prefill_chunk=prefill_chunk,
        size=size,
        rounds=rounds,
        device=device,
        variants=variant or end_to_end.VARIANTS,
        report=told,
    )
    return result, end_to_end.format_rows(result)


@measures("batch")
def bench_batch(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes; 1, 8 and 32 by default.")] = None,
    cells: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Sizes of the scenes; 4 and 8 (64 and 256 visual tokens) by default."),
    ] = None,
    samples: Count = 24,
    rounds: Count = 3,
) -> Measured:
    """How many samples a second the bundled model decodes, one by one and together, recorded and not."""
    from visionpulse_analysis.experiments.bench import batch as together

    result = together.bench_batch(
        batch or (1, 8, 32),
        cells=cells or (4, 8),
        samples=samples,
        rounds=rounds,
        report=told,
    )
    return result, together.format_rows(result)


@measures("recording")
def bench_recording(
    visual_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Square numbers; 1024 and 4096 by default.")
    ] = None,
    steps: Count = 24,
    rounds: Count = 5,
) -> Measured:
    """What recording costs: plain decoding, recording, and eager output_attentions, side by side."""
    from visionpulse_analysis.experiments.bench import recording

    result = recording.bench_recording(visual_tokens or (1024, 4096), steps=steps, rounds=rounds)
    return result, recording.format_rows(result)


@measures("store")
def bench_store(
    traces: Count = 100_000,
    reads: Count = 200,
    folder: Annotated[
        Path | None, typer.Option(help="Fill a store here and keep it; without it, one that is removed.")
    ] = None,
) -> Measured:
    """How fast a store of very many traces opens, lists its traces, and gives a step of any of them."""
    from visionpulse_analysis.experiments.bench import store

    result = store.bench_store(traces, reads=reads, folder=folder)
    return result, store.format_result(result)


@measures("sweep")
def bench_sweep(
    samples: Count = 2000,
    cells: Annotated[int, typer.Option(min=1, help="Size of the scenes; 4 gives 64 visual tokens.")] = 4,
) -> Measured:
    """Whether the memory of a worker stays flat over a long sweep."""
    from visionpulse_analysis.experiments.bench import endurance

    result = endurance.bench_sweep(samples, cells=cells, report=told)
    return result, endurance.format_sweep(result)


@measures("sharing")
@loads_model
def bench_sharing(
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Longest traces; 8, 32 and 128 by default.")] = None,
    samples: Count = 4,
    cells: Annotated[int, typer.Option(min=1, help="Size of the scenes; 16 gives 1024 visual tokens.")] = 16,
    rounds: Count = 3,
    model: Model = "scenes",
    *,
    load: Load,
) -> Measured:
    """What pruners that share a prefill, as those of a sweep do, save in CPU seconds."""
    from visionpulse_analysis.experiments.bench import batch as together

    given = [] if steps is None else [steps]
    options = {"samples": samples, "cells": cells, "rounds": rounds, "vlm": load(model)}
    result = together.bench_sharing(*given, **options, report=told)
    return result, together.format_sharing(result)


@measures("endurance")
@loads_model
def bench_endurance(
    decodes: Count = 10_000,
    model: Model = "scenes",
    *,
    load: Load,
) -> Measured:
    """Whether many short decodes in one process leave memory, hooks or anything else behind."""
    from visionpulse_analysis.experiments.bench import endurance

    result = endurance.bench_endurance(decodes, vlm=load(model), report=told)
    return result, endurance.format_result(result)
