"""Check that a model is recorded and pruned exactly: ``check``."""

from __future__ import annotations

from typing import Annotated

import typer

from visionpulse_analysis.cli.base import Json, Load, app, command, loads_model, show


@command(app)
@loads_model
def check(
    model: Annotated[str, typer.Argument(help='"scenes", a folder, or a hub id.')] = "scenes",
    *,
    load: Load,
    as_json: Json = False,
) -> None:
    """Check on a model that what is recorded and pruned is exact. Ends with exit code 1 where a check fails."""
    import visionpulse_analysis as vpa

    report = vpa.check(load(model))
    show(report.to_dict(), as_json, str(report))
    if not report:
        raise typer.Exit(1)
