"""Look at stored traces and figures: ``explore``, ``import``, ``export``, ``pictures``, ``provenance``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionpulse_analysis.cli.base import (
    Json,
    app,
    command,
    show,
)

if TYPE_CHECKING:
    from visionpulse_analysis.traces import Trace

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@command(app)
def explore(
    store: Annotated[Path, typer.Argument(help="A trace store, or one saved trace.")],
    sample: Annotated[str | None, typer.Option(help="Id of the trace; the first one without it.")] = None,
    pruned: Annotated[
        list[str] | None, typer.Option(help="Id of a pruned trace of the same sample, to stand beside it; repeatable.")
    ] = None,
    view: Annotated[str, typer.Option(help='A link of the explorer, such as "step=12&layer=3".')] = "",
    figure: Annotated[Path | None, typer.Option(help="Draw the view as a paper figure instead.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("explorer.html"),
    max_bytes: Annotated[
        int, typer.Option(min=1, help="Aimed size of the page; beyond it heads are averaged and layers left out.")
    ] = 3_000_000,
    as_json: Json = False,
) -> None:
    """Write the explorer page of stored traces: one file that works with the network off."""
    import visionpulse_analysis as vpa

    traces = traces_at(store)
    first, *others = (sample_of(traces, store, id) for id in [sample or next(iter(traces)), *(pruned or [])])
    if figure is not None:
        from visionpulse_analysis.explorer.figure import draw_view
        from visionpulse_analysis.figures import save
        from visionpulse_analysis.traces import traces_hash

        about = {"store": str(store), "sample": first.meta.get("id"), "pruned": pruned, "view": view}
        written = save(
            draw_view(first, *others, view=view),
            figure.stem,
            folder=figure.parent,
            parameters=about,
            data_hash=traces_hash([first, *others]),
        )
        show({"figures": [str(path) for path in written]}, as_json, "\n".join(f"wrote {path}" for path in written))
        return
    path = vpa.explore(first, *others, view=view, store=store, max_bytes=max_bytes).save(out)
    show({"page": str(path), "bytes": Path(path).stat().st_size}, as_json, f"wrote {path}")


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
    traces = traces_at(store)  # what is wrong is told before what draws is imported
    if sample is not None:
        sample_of(traces, store, sample)
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
    from visionpulse_analysis.figures.saving import command_for

    found = read_provenance(file)
    found |= {"command": command_for(found)}
    show(found, as_json, json.dumps(found, indent=1))


def traces_at(source: Path) -> Any:
    """What a trace store holds, or the one trace that is saved there, by id."""
    import visionpulse_analysis as vpa

    try:
        store = vpa.TraceStore(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no trace store at {source}, nor a saved trace; decode --store makes one") from error
    except ValueError:
        trace = vpa.Trace.open(source)  # says what is wrong, if it is no trace either
        return {trace.meta.get("id", source.name): trace}
    if not len(store):
        raise ValueError(f"the store {source} is empty")
    return store


def sample_of(found: Any, source: Path, id: str) -> Any:
    """The trace of an id; KeyError, which names some that exist, where there is none."""
    if id not in found:
        raise KeyError(f"no trace {id!r} in {source}; choose with --sample: {', '.join(list(found)[:5])}")
    return found[id]
