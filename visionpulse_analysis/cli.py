"""The command line: ``visionpulse``. Every command takes ``--json`` and then prints one JSON document on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="See where a vision-language model looks.")
bench = typer.Typer(no_args_is_help=True, help="Measure speed and memory, as ratios taken side by side.")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Parameters = Annotated[list[str] | None, typer.Option("-p", "--parameter", metavar="KEY=VALUE")]
Model = Annotated[str, typer.Option(help='"scenes", a folder, or a hub id.')]


def command(group: typer.Typer, name: str | None = None) -> Callable:
    """Register a command whose errors end in one line on standard error and exit code 2."""

    def register(function: Callable) -> Callable:
        @wraps(function)
        def run(*args: Any, **options: Any) -> None:
            try:
                function(*args, **options)
            except (ValueError, OSError, KeyError, IndexError, RuntimeError) as error:
                if "--traceback" in sys.argv:
                    raise
                message = error.args[0] if isinstance(error, KeyError) and error.args else error
                typer.echo(f"error: {message}", err=True)
                raise typer.Exit(2) from error

        group.command(name)(run)
        return function

    return register


def show(result: Any, as_json: bool, text: str) -> None:
    """Print ``text``, or ``result`` as JSON (NaN becomes null)."""
    typer.echo(json.dumps(_finite(result), indent=1, allow_nan=False, default=str) if as_json else text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def key_values(pairs: list[str] | None) -> dict[str, str]:
    """Split KEY=VALUE arguments; raises ValueError for one without a key or an equals sign."""
    wrong = [pair for pair in pairs or [] if not pair.partition("=")[0].strip() or "=" not in pair]
    if wrong:
        raise ValueError(f"expected KEY=VALUE, got {wrong[0]!r}")
    return {pair.partition("=")[0].strip(): pair.partition("=")[2] for pair in pairs or []}


def literals(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE arguments with values read as Python literals where they are."""
    from ast import literal_eval

    values: dict[str, Any] = {}
    for key, text in key_values(pairs).items():
        try:
            values[key] = literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


@command(app)
def decode(
    image: Path,
    question: str,
    model: Model = "scenes",
    pruner: Annotated[str | None, typer.Option(help="A pruner's name; its parameters follow as -p.")] = None,
    parameter: Parameters = None,
    layers: Annotated[str, typer.Option(help='"all", "anchor", or indices such as 3,5.')] = "all",
    heads: Annotated[str, typer.Option(help='"mean", "all", or indices such as 0,2.')] = "mean",
    execution: str = "masked",
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; greedy without it.")] = None,
    seed: int = 0,
    max_new_tokens: int = 256,
    store: Annotated[Path | None, typer.Option(help="Stream the trace into this trace store.")] = None,
    id: Annotated[str, typer.Option(help="Name of the trace in the store.")] = "trace",
    out: Annotated[Path | None, typer.Option(help="Save the trace here.")] = None,
    explore: Annotated[Path | None, typer.Option(help="Write the explorer page here.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a question about an image and record where the model looks at every step."""
    import visionpulse_analysis as vpa
    from visionpulse_analysis.sampling import Sample

    trace = vpa.decode(
        vpa.load(model),
        image,
        question,
        layers=_indices(layers),
        heads=_indices(heads),
        pruner=vpa.make_pruner(pruner, **literals(parameter)) if pruner else None,
        execution=execution,
        sample=None if temperature is None else Sample(temperature),
        seed=seed,
        max_new_tokens=max_new_tokens,
        store=None if store is None else vpa.TraceStore(store, mode="a"),
        ids=None if store is None else id,
    )
    if out is not None:
        trace.save(out)
    if explore is not None:
        vpa.explore(trace).save(explore)
    result = {
        "answer": trace.answer,
        "thinking": trace.thinking,
        "finished": trace.meta["finished"],
        "tokens": trace.tokens,
        "mass": trace.mass.values.tolist(),
        "layers": trace.layers,
        "kept": None if trace.k is None else trace.k.values.tolist(),
        "patches": len(trace.grid),
        "meta": trace.meta,
    }
    show(result, as_json, f"{trace.thinking}\n{trace.answer}")


def _indices(text: str) -> Any:
    """A word such as "all", or a list of indices."""
    return [int(part) for part in text.split(",")] if text.replace(",", "").strip().isdigit() else text


@command(app)
def explore(
    store: Path,
    sample: Annotated[str | None, typer.Option(help="Id of the trace; the first one without it.")] = None,
    pruned: Annotated[
        str | None, typer.Option(help="Id of a pruned trace of the same sample, shown beside it.")
    ] = None,
    view: Annotated[str, typer.Option(help='A link of the explorer, such as "step=12&layer=3".')] = "",
    figure: Annotated[Path | None, typer.Option(help="Draw the view as a paper figure instead.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("explorer.html"),
    as_json: Json = False,
) -> None:
    """Write the explorer page of stored traces: one file that works with the network off."""
    import visionpulse_analysis as vpa

    traces = vpa.TraceStore(store)
    if not len(traces):
        raise ValueError(f"the store {store} is empty")
    first = traces[sample if sample is not None else traces.ids[0]]
    second = None if pruned is None else traces[pruned]
    if figure is not None:
        from visionpulse_analysis.explorer.figure import draw_view
        from visionpulse_analysis.figures import save

        about = {"store": str(store), "sample": first.meta.get("id"), "pruned": pruned, "view": view}
        written = save(
            draw_view(first, second, view),
            figure.stem,
            folder=figure.parent,
            parameters=about,
            data_hash=first.data_hash,
        )
        show({"figures": [str(path) for path in written]}, as_json, "\n".join(f"wrote {path}" for path in written))
        return
    path = vpa.explore(first, second, view=view, store=str(store)).save(out)
    show({"page": str(path), "bytes": Path(path).stat().st_size}, as_json, f"wrote {path}")


@command(app)
def figures(
    name: Annotated[
        str | None, typer.Argument(help="A notebook, such as 01 or step_dependence; all without it.")
    ] = None,
    parameter: Parameters = None,
    fast: Annotated[bool, typer.Option("--fast", help="Small and quick, into figures/fast/.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    as_json: Json = False,
) -> None:
    """Run the notebooks and write every figure."""
    from visionpulse_analysis import notebooks

    values = key_values(parameter)
    if name is None:
        silent = (lambda line: None) if as_json else typer.echo
        done = notebooks.run_all(values, out=out, fast=fast, report=silent)
    else:
        done = [notebooks.run(name, values, out=out, fast=fast)]
    result = [
        {"notebook": d.name, "executed": str(d.path), "parameters": d.parameters, "seconds": d.seconds} for d in done
    ]
    show({"notebooks": result}, as_json, "\n".join(f"{d.name}: {d.path} ({d.seconds:.1f} s)" for d in done))


@command(app)
def provenance(file: Path, as_json: Json = False) -> None:
    """Print what a figure was made from: parameters, versions, seed, data hash, numbers."""
    from visionpulse_analysis.figures import read_provenance

    found = read_provenance(file)
    show(found, as_json, json.dumps(found, indent=1))


@command(app)
def train(
    folder: Annotated[Path, typer.Option(help="Checkpoints; training goes on from what is there.")] = Path(
        "runs/scenes"
    ),
    minutes: Annotated[float | None, typer.Option(help="Stop after this much time.")] = None,
    seed: int = 0,
    device: str = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    start: Annotated[Path | None, typer.Option(help="A published model to go on from, in a new folder.")] = None,
    publish: Annotated[Path | None, typer.Option(help="Write the averaged weights as a model here at the end.")] = None,
    as_json: Json = False,
) -> None:
    """Train the bundled model, or go on training it."""
    from visionpulse_analysis.testbed.training import Trainer

    trainer = Trainer(folder, seed=seed, device=device, threads=threads, start=start)
    trainer.run(minutes=minutes, report=lambda line: typer.echo(line, err=True))
    if publish is not None:
        trainer.publish(publish)
    show(
        trainer.state,
        as_json,
        f"step {trainer.state['step']}, {trainer.state['seconds'] / 60:.1f} minutes in all",
    )


@command(app)
def evaluate(
    model: Model = "scenes",
    cells: Annotated[int, typer.Option(help="Scene size of the headline numbers, cells per side.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Only this many scenes of each size.")] = None,
    controls: Annotated[bool, typer.Option(help="Also measure noise, random patches and the reading horizon.")] = True,
    as_json: Json = False,
) -> None:
    """Score a model on the evaluation set that ships with the project."""
    import visionpulse_analysis as vpa
    from visionpulse_analysis.testbed import evaluation

    items = evaluation.evaluation_items()
    if limit is not None:
        sizes = sorted({item.scene.cells for item in items})
        items = [i for size in sizes for i in [x for x in items if x.scene.cells == size][:limit]]
    result = evaluation.evaluate(vpa.load(model), items, cells=cells, controls=controls)
    show(result, as_json, evaluation.format_report(result))


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
