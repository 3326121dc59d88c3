"""Traces from and for other programs: ``import`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visionpulse_analysis.cli.base import Json, app, command, sample_of, show, traces_at

if TYPE_CHECKING:
    from visionpulse_analysis.traces import Trace

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@command(app, "import")
def import_(
    source: Annotated[Path, typer.Argument(help="A trace.npz of the paper's authors, or a folder with some.")],
    store: Annotated[Path, typer.Option(help="Add them to this trace store; made if there is none.")],
    id: Annotated[
        str | None,
        typer.Option(
            help="Name in the store, of a single file. Without it: the file's sample_id, or of the files of a folder "
            "their place in it."
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The picture of a single file; image.png beside the file without it.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Bring trace.npz files (format_version 1) into a trace store: all of them, or none where one cannot be."""
    import visionpulse_analysis as vpa
    from visionpulse_analysis.traces.exchange import import_traces

    imported = import_traces(source, store, id=id, image=image, overwrite=overwrite)
    traces = vpa.TraceStore(store)
    done = [
        {"file": str(file), "id": name, "steps": len(traces[name]), "patches": len(traces[name].grid)}
        for name, file in imported.items()
    ]
    lines = (f"{d['file']}: {d['id']}, {d['steps']} steps of {d['patches']} patches" for d in done)
    show({"store": str(store), "traces": done}, as_json, "\n".join(lines))


@command(app)
def export(
    source: Annotated[Path, typer.Argument(help="A trace store, or one saved trace.")],
    out: Annotated[
        Path,
        typer.Argument(
            help="steps.csv or steps.parquet: a table of all traces. trace.npz: one trace in the format of the paper's "
            "authors. boxes.json: one trace as COCO-like boxes. A folder: trace.npz of every trace."
        ),
    ],
    sample: Annotated[str | None, typer.Option(help="Only the trace of this id.")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer, where several were recorded (npz, boxes).")] = None,
    top: Annotated[int | None, typer.Option(help="Only the strongest patches of each step (boxes).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write stored traces for other programs; the ending of OUT says what."""
    from visionpulse_analysis.traces import exchange

    found = _traces(source, sample)
    if out.suffix in (".csv", ".parquet"):
        written = [exchange.write_table(found.values(), out, overwrite=overwrite)]
    elif out.suffix == ".npz":
        written = exchange.write_npz(_only(found, source), out, layer, overwrite=overwrite)
    elif out.suffix == ".json":
        written = exchange.write_boxes(_only(found, source), out, layer, top=top, overwrite=overwrite)
    elif not out.suffix or out.is_dir():
        written = exchange.write_npz_folder(found, out, layer, overwrite=overwrite)
    else:
        raise ValueError(f"OUT must end in .csv, .parquet, .npz or .json, or be a folder; got {out.name!r}")
    show({"written": [str(path) for path in written]}, as_json, "\n".join(f"wrote {path}" for path in written))


def _traces(source: Path, sample: str | None) -> dict[str, Trace]:
    """The traces asked for, by id."""
    found = traces_at(source)
    return {id: sample_of(found, source, id) for id in (found if sample is None else [sample])}


def _only(found: dict[str, Trace], source: Path) -> Trace:
    if len(found) > 1:
        raise ValueError(
            f"{source} holds {len(found)} traces; choose one with --sample: {', '.join(list(found)[:5])} ..."
        )
    return next(iter(found.values()))
