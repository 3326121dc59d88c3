"""Other people's programs under watch: ``lmms-eval``."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from visionpulse_analysis.cli.base import Json, Seed, app, command, indices, show


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
    from visionpulse_analysis.decoding.watching.lmms_eval import in_place_of

    options = {
        "layers": indices(layers),
        "heads": indices(heads),
        "execution": execution,
        "seed": seed,
        "prefix": prefix,
        "overwrite": overwrite,
        "pruner": None if pruner is None else vpa.make_pruner(pruner),
    }
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
