"""Measure speed and memory: ``bench ...``."""

from __future__ import annotations

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
