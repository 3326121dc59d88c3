"""Measure speed and memory: ``bench ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis.cli.base import Count, Json, Load, Model, bench, command, loads_model, show, told

Save = Annotated[
    Path | None, typer.Option(help="Also keep the result, with command, machine, versions and date, here.")
]


@command(bench, "decode")
def bench_decode(
    context: typer.Context,
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
    save: Save = None,
    as_json: Json = False,
) -> None:
    """What one decode step costs: the library's, ours dense and pruned, and the least that memory allows."""
    from visionpulse_analysis.experiments.bench.variants import check_names

    check_names(size, variant or ())
    from visionpulse_analysis.experiments.bench import decode

    options: dict[str, Any] = {"size": size, "rounds": rounds, "device": device}
    result = decode.bench_decode(
        visual_tokens or decode.VISUAL_TOKENS,
        batch or (1, 8),
        variants=variant or None,
        report=told,
        **options,
    )
    _finish(context, result, decode.format_rows(result), save, as_json)


@command(bench, "end-to-end")
def bench_end_to_end(
    context: typer.Context,
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
    save: Save = None,
    as_json: Json = False,
) -> None:
    """What a whole answer costs, prefill and all steps, at the settings of the paper's authors."""
    from visionpulse_analysis.experiments.bench.variants import check_names

    check_names(size, [name for name in variant or () if name != "block"])
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
    _finish(context, result, end_to_end.format_rows(result), save, as_json)


@command(bench, "batch")
def bench_batch(
    context: typer.Context,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes; 1, 8 and 32 by default.")] = None,
    cells: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Sizes of the scenes; 4 and 8 (64 and 256 visual tokens) by default."),
    ] = None,
    samples: Count = 24,
    rounds: Count = 3,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """How many samples a second the bundled model decodes, one by one and together, recorded and not."""
    from visionpulse_analysis.experiments.bench import batch as together

    result = together.bench_batch(
        batch or (1, 8, 32),
        cells=cells or (4, 8),
        samples=samples,
        rounds=rounds,
        report=told,
    )
    _finish(context, result, together.format_rows(result), save, as_json)


@command(bench, "recording")
def bench_recording(
    context: typer.Context,
    visual_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Square numbers; 1024 and 4096 by default.")
    ] = None,
    steps: Count = 24,
    rounds: Count = 5,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """What recording costs: plain decoding, recording, and eager output_attentions, side by side."""
    from visionpulse_analysis.experiments.bench import recording

    result = recording.bench_recording(visual_tokens or (1024, 4096), steps=steps, rounds=rounds)
    _finish(context, result, recording.format_rows(result), save, as_json)


@command(bench, "store")
def bench_store(
    context: typer.Context,
    traces: Count = 100_000,
    reads: Count = 200,
    folder: Annotated[
        Path | None, typer.Option(help="Fill a store here and keep it; without it, one that is removed.")
    ] = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """How fast a store of very many traces opens, lists its traces, and gives a step of any of them."""
    from visionpulse_analysis.experiments.bench import store

    result = store.bench_store(traces, reads=reads, folder=folder)
    _finish(context, result, store.format_result(result), save, as_json)


@command(bench, "sweep")
def bench_sweep(
    context: typer.Context,
    samples: Count = 2000,
    cells: Annotated[int, typer.Option(min=1, help="Size of the scenes; 4 gives 64 visual tokens.")] = 4,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Whether the memory of a worker stays flat over a long sweep."""
    from visionpulse_analysis.experiments.bench import sweep_memory as memory

    result = memory.bench_sweep(samples, cells=cells, report=told)
    _finish(context, result, memory.format_result(result), save, as_json)


@command(bench, "sharing")
@loads_model
def bench_sharing(
    context: typer.Context,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Longest traces; 8, 32 and 128 by default.")] = None,
    samples: Count = 4,
    cells: Annotated[int, typer.Option(min=1, help="Size of the scenes; 16 gives 1024 visual tokens.")] = 16,
    rounds: Count = 3,
    model: Model = "scenes",
    *,
    load: Load,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """What pruners that share a prefill, as those of a sweep do, save in CPU seconds."""
    from visionpulse_analysis.experiments.bench import sharing

    given = [] if steps is None else [steps]
    options = {"samples": samples, "cells": cells, "rounds": rounds, "vlm": load(model)}
    result = sharing.bench_sharing(*given, **options, report=told)
    _finish(context, result, sharing.format_rows(result), save, as_json)


@command(bench, "endurance")
@loads_model
def bench_endurance(
    context: typer.Context,
    decodes: Count = 10_000,
    model: Model = "scenes",
    *,
    load: Load,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Whether many short decodes in one process leave memory, hooks or anything else behind."""
    from visionpulse_analysis.experiments.bench import endurance

    result = endurance.bench_endurance(decodes, vlm=load(model), report=told)
    _finish(context, result, endurance.format_result(result), save, as_json)


def _finish(context: typer.Context, result: dict[str, Any], table: str, save: Path | None, as_json: bool) -> None:
    from visionpulse_analysis.experiments.bench.machine import write_result

    result = {"command": _command(context), **result}
    if save is not None:
        write_result(result, save)
    show(result, as_json, table)


def _command(context: typer.Context) -> str:
    """What was typed, without where the result goes."""
    words = ["visionpulse", "bench", str(context.info_name)]
    for option in context.command.params:
        name = str(option.name)
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in ("save", "folder", "as_json"):
            given = context.params[name]
            for value in given if isinstance(given, list | tuple) else [given]:
                words += [option.opts[0], str(value)]
    return " ".join(words)
