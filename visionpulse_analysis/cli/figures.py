"""Draw the figures and read what they were made from: ``figures`` and ``provenance``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis.cli.base import (
    Json,
    MaxPixels,
    MaxTiles,
    MinPixels,
    Parameters,
    Prefix,
    System,
    Template,
    TrustRemoteCode,
    app,
    command,
    key_values,
    prompt_options,
    show,
)


@command(app)
def figures(
    name: Annotated[
        str | None, typer.Argument(help="A notebook, such as 01 or step_dependence; all without it.")
    ] = None,
    parameter: Parameters = None,
    fast: Annotated[bool, typer.Option("--fast", help="Small and quick, into figures/fast/.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Notebooks side by side; by default one for each core.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    max_tiles: MaxTiles = None,
    system: System = None,
    prefix: Prefix = None,
    template: Template = None,
    as_json: Json = False,
) -> None:
    """Run the notebooks and write every figure."""
    from visionpulse_analysis.cli.notebooks import run as notebooks

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "max_tiles": max_tiles}
    asked = prompt_options(template, system=system, prefix=prefix, **limits)
    values: dict[str, Any] = key_values(parameter) | ({"trust_remote_code": True} if trust_remote_code else {})
    values |= {"prompt_options": asked} if asked else {}
    if name is None:
        silent = (lambda line: None) if as_json else typer.echo
        done = notebooks.run_all(values, out=out, fast=fast, report=silent, jobs=jobs)
    else:
        done = [notebooks.run(name, values, out=out, fast=fast)]
    result = [
        {"notebook": d.name, "executed": str(d.path), "parameters": d.parameters, "seconds": d.seconds} for d in done
    ]
    show({"notebooks": result}, as_json, "\n".join(f"{d.name}: {d.path} ({d.seconds:.1f} s)" for d in done))


@command(app)
def pictures(
    store: Annotated[Path, typer.Argument(help="A trace store, of imported traces or of one's own.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures/pictures"),
    layer: Annotated[int, typer.Option(help="Of correlation and activation; -1: the only one recorded.")] = -1,
    threshold: Annotated[
        list[float] | None, typer.Option(help="Of the active count; repeatable; the paper's four without it.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="Id of the trace whose activation is shown; the first one.")
    ] = None,
    step: Annotated[
        list[int] | None, typer.Option(help="Of that trace; repeatable; three evenly spaced without it.")
    ] = None,
    level: Annotated[
        list[float] | None, typer.Option(help="Percentile at or below which patches are black; repeatable; 50 and 90.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the authors' three pictures from stored traces, without a model: correlation, similarity, activation."""
    from visionpulse_analysis.metrics.attention import PAPER_THRESHOLDS
    from visionpulse_analysis.studies.authors_figures.figures import LEVELS
    from visionpulse_analysis.studies.authors_figures.report import draw_pictures

    options: dict[str, Any] = {"thresholds": threshold or PAPER_THRESHOLDS, "levels": level or LEVELS}
    result = draw_pictures(store, out, layer=layer, sample=sample, steps=step or None, **options)
    lines = [result["about"], *(f"wrote {path}" for path in result["figures"])]
    lines += [f"{name} left out: {why}" for name, why in result["left_out"].items()]
    show(result, as_json, "\n".join(lines))


@command(app)
def provenance(file: Annotated[Path, typer.Argument(help="A figure: PNG, PDF or SVG.")], as_json: Json = False) -> None:
    """Print what a figure was made from, and the command that makes it again."""
    from visionpulse_analysis.figures import read_provenance
    from visionpulse_analysis.figures.provenance import command_for

    found = read_provenance(file)
    found |= {"command": command_for(found)}
    show(found, as_json, json.dumps(found, indent=1))
