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
    export_unjudged: Annotated[
        Path | None,
        typer.Option(help="Decode nothing: write the answers that wait for a language model as judge, as JSON lines."),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option(help="Decode nothing: read such a judge's verdicts (id, score, judge) into the table."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode samples with every model, pruner and seed; the same command goes on after an interruption."""
    from visionpulse_analysis.experiments.sweeps import unjudged
    from visionpulse_analysis.experiments.sweeps.config import read_config
    from visionpulse_analysis.experiments.sweeps.running import run

    if export_unjudged is not None and verdicts is not None:
        raise ValueError("give --export-unjudged or --verdicts, one at a time")
    if export_unjudged is not None:
        n = unjudged.export_unjudged(read_config(config), export_unjudged)
        show({"exported": n}, as_json, f"{n} answers wait for a judge: {export_unjudged}")
        return
    if verdicts is not None:
        n = unjudged.read_verdicts(read_config(config).out, verdicts)
        show({"verdicts": n}, as_json, f"{n} verdicts read in")
        return
    summary = run(
        read_config(config),
        scheduler=scheduler,
        workers=workers,
        retry_failed=retry_failed,
        report=lambda line: typer.echo(line, err=True),
    )
    text = f"{summary.finished} of {summary.planned} traces finished, {summary.failed} failed; table: {summary.table}"
    show(asdict(summary), as_json, text)
