"""The sweep command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from visionpulse_analysis.cli.base import Json, app, command, show


@command(app)
def sweep(
    config: Annotated[Path, typer.Argument(help="The sweep's YAML file.")],
    scheduler: Annotated[str | None, typer.Option(help="Address of an existing dask scheduler.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Local processes; one per GPU, or else per CPU, without it. 0: only this process."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try samples again that failed for good.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Decode samples with every model, pruner and seed; the same command goes on after an interruption."""
    from visionpulse_analysis.sweeps.config import read_config
    from visionpulse_analysis.sweeps.running import run

    summary = run(
        read_config(config),
        scheduler=scheduler,
        workers=workers,
        retry_failed=retry_failed,
        report=lambda line: typer.echo(line, err=True),
    )
    text = f"{summary.finished} of {summary.planned} traces finished, {summary.failed} failed; table: {summary.table}"
    show(asdict(summary), as_json, text)
