"""Run what takes long: ``figures`` and their ``notebooks``, ``sweep``, ``lmms-eval``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.cli.base import (
    Json,
    MaxPixels,
    MaxTiles,
    MinPixels,
    Model,
    Parameters,
    Prefix,
    Seed,
    System,
    Template,
    TrustRemoteCode,
    app,
    command,
    key_values,
    prompt_options,
    recorded,
    show,
    told,
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


@command(app, "notebooks")
def copy_notebooks(
    folder: Annotated[Path, typer.Argument(help="Where you work; made if it is not there.")] = Path("notebooks"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that differ, such as changed ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy the notebooks, and the example picture, to where you work."""
    from visionpulse_analysis.cli.notebooks import run as notebooks

    written = notebooks.copy_to(folder, overwrite)
    text = "\n".join(f"wrote {path}" for path in written) or f"all that is to be copied is in {folder} already"
    show({"written": [str(path) for path in written]}, as_json, text)


@command(app)
def playground(
    image: Annotated[str | None, typer.Argument(help="A picture; without it a generated scene.")] = None,
    question: Annotated[str, typer.Argument(help="In quotes; without it one about the scene.")] = "",
    model: Model = "scenes",
    pruner: Annotated[str, typer.Option(help="As text: visionpulse, fastv(budget=0.2), a | b.")] = "visionpulse",
    notebook: Annotated[
        Path, typer.Option(help="The notebook that is written; one that is there is opened as it is.")
    ] = Path("playground.ipynb"),
    lab: Annotated[
        list[str] | None, typer.Option(help="An option of JupyterLab: --lab=--no-browser; may be repeated.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Ask and change on screen: a notebook with the form, opened in JupyterLab (with --json only written)."""
    from visionpulse_analysis.media.images import read_image
    from visionpulse_analysis.models.finding import place_of
    from visionpulse_analysis.pruners import make_pruner

    # What is wrong is told here, and not in a cell of the notebook.
    place_of(model, "main")
    make_pruner(pruner)
    if image is not None:
        read_image(image)
    given = {"image": image, "question": question, "pruner": pruner}
    asked = f"vpa.load({model!r}, trust_remote_code=True)" if trust_remote_code else repr(model)
    words = [asked, *(f"{name}={value!r}" for name, value in given.items() if value)]
    code = f"import visionpulse_analysis as vpa\n\nvpa.playground({', '.join(words)})"
    if not notebook.exists():
        from nbformat import v4, writes

        told = v4.new_markdown_cell("Run the cell below (Shift+Enter), then press *Run* in the form.")
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        made = v4.new_notebook(cells=[told, v4.new_code_cell(code)], metadata={"kernelspec": kernel})
        write_whole(notebook, writes(made).encode())
    elif (image, question, model, pruner) != (None, "", "scenes", "visionpulse"):
        raise FileExistsError(
            f"{notebook} exists, and is opened as it is; to ask something else name another: --notebook"
        )
    words = [sys.executable, "-m", "jupyterlab", str(notebook), *(lab or [])]
    show({"notebook": str(notebook), "command": words}, as_json, f"opening {notebook} in JupyterLab")
    if not as_json:
        sys.stdout.flush()
        os.execv(sys.executable, words)  # in this process: Ctrl-C is JupyterLab's to answer


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
    if not config.is_file():
        raise FileNotFoundError(f"no sweep file at {config}")
    if export_unjudged is not None and verdicts is not None:
        raise ValueError("give --export-unjudged or --verdicts, one at a time")
    from visionpulse_analysis.experiments.sweeps.config import read_config

    asked = read_config(config)
    if export_unjudged is not None or verdicts is not None:
        from visionpulse_analysis.experiments.sweeps import verdicts as judged
    if export_unjudged is not None:
        n = judged.export_unjudged(asked, export_unjudged)
        show({"exported": n}, as_json, f"{n} answers wait for a judge: {export_unjudged}")
        return
    if verdicts is not None:
        n = judged.read_verdicts(asked.out, verdicts)
        show({"verdicts": n}, as_json, f"{n} verdicts read in")
        return
    from visionpulse_analysis.experiments.sweeps.running import run

    summary = run(
        asked,
        scheduler=scheduler,
        workers=workers,
        retry_failed=retry_failed,
        report=told,
    )
    text = f"{summary.finished} of {summary.planned} traces finished, {summary.failed} failed; table: {summary.table}"
    show(asdict(summary), as_json, text)


@command(app, "lmms-eval")
def lmms_eval(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="-- ARGUMENTS...", help="Those of lmms-eval, behind --.", show_default=False),
    ],
    store: Annotated[Path, typer.Option(help="Stream the traces into this trace store.")],
    pruner: Annotated[str | None, typer.Option(help="As text: visionpulse(budget=0.05), a | b.")] = None,
    layers: Annotated[str, typer.Option(help='"all", "anchor", or indices such as 3,5.')] = "all",
    heads: Annotated[str, typer.Option(help='"mean", "all", or indices such as 0,2.')] = "mean",
    execution: Annotated[
        str, typer.Option(help='How patches are left out: "masked", or "gathered", which is faster on long contexts.')
    ] = "masked",
    seed: Seed = 0,
    prefix: Annotated[str, typer.Option(help="Beginning of the traces' names: one store may hold several runs.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace traces of the same documents in the store.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run lmms-eval with a trace of each answer, perhaps pruned: visionpulse lmms-eval --store S -- --model M ..."""
    import visionpulse_analysis as vpa

    options = {
        **recorded(layers, heads, execution),
        "seed": seed,
        "prefix": prefix,
        "overwrite": overwrite,
        "pruner": None if pruner is None else vpa.make_pruner(pruner),
    }
    from visionpulse_analysis.decoding.watching.lmms_eval import in_place_of

    with ExitStack() as stack:
        if as_json:  # standard output is for one document
            stack.enter_context(redirect_stdout(sys.stderr))
        seen = stack.enter_context(vpa.watch_lmms_eval(vpa.TraceStore(store, mode="a"), **options))
        stack.enter_context(in_place_of(sys, "argv", ["lmms-eval", *arguments]))
        import_module("lmms_eval.cli.dispatch").main()
    if seen.error is not None:  # lmms-eval prints it and ends as if nothing had happened
        raise seen.error
    if not seen.ids and not seen.without_picture:
        raise RuntimeError("lmms-eval answered no document; what it printed says why")
    result = {"store": str(store), "ids": seen.ids, "without_picture": seen.without_picture}
    without = f"; {len(seen.without_picture)} documents without a picture" if seen.without_picture else ""
    show(result, as_json, f"{len(seen.ids)} traces in {store}{without}")
