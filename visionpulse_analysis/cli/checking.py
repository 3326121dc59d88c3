"""Check that a model is recorded and pruned exactly: ``check``."""

from __future__ import annotations

from typing import Annotated

import typer

from visionpulse_analysis.cli.base import Json, TrustRemoteCode, app, command, show


@command(app)
def check(
    model: Annotated[str, typer.Argument(help='"scenes", a folder, or a hub id.')] = "scenes",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; by default cuda where there is one, else cpu.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Check on a model that what is recorded and pruned is exact. Ends with exit code 1 where a check fails."""
    import visionpulse_analysis as vpa

    report = vpa.check(vpa.load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code))
    show(report.to_dict(), as_json, str(report))
    if not report:
        raise typer.Exit(1)
