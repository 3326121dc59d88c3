"""Record traces and look at them: ``decode`` and ``explore``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis.cli.base import (
    Asked,
    Fps,
    Greedy,
    Json,
    KeepTraces,
    Load,
    Model,
    MostTokens,
    Parameters,
    SampleFps,
    Seed,
    Temperature,
    TopK,
    TopP,
    TurnsFile,
    Videos,
    app,
    check_free,
    command,
    drawing,
    indices,
    literals,
    loads_model,
    sample_of,
    show,
    shown_and_asked,
    traces_at,
)


@command(app)
@loads_model
def decode(
    asked: Asked = None,
    video: Videos = None,
    fps: Fps = None,
    sample_fps: SampleFps = None,
    turns: TurnsFile = None,
    model: Model = "scenes",
    pruner: Annotated[
        str | None, typer.Option(help="A pruner's name, with -p for its parameters, or as text: a(x=1) | b.")
    ] = None,
    parameter: Parameters = None,
    layers: Annotated[str, typer.Option(help='"all", "anchor", or indices such as 3,5.')] = "all",
    heads: Annotated[str, typer.Option(help='"mean", "all", or indices such as 0,2.')] = "mean",
    record: Annotated[
        str | None, typer.Option(help="Further quantities, such as head_entropy: see `visionpulse quantities`.")
    ] = None,
    execution: Annotated[
        str, typer.Option(help='How patches are left out: "masked", or "gathered", which is faster on long contexts.')
    ] = "masked",
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    greedy: Greedy = False,
    seed: Seed = 0,
    max_new_tokens: MostTokens = None,
    store: Annotated[Path | None, typer.Option(help="Stream the trace into this trace store.")] = None,
    id: Annotated[str, typer.Option(help="Name of the trace in the store.")] = "trace",
    out: Annotated[Path | None, typer.Option(help="Save the trace here.")] = None,
    explore: Annotated[
        Path | None, typer.Option(help="Write the explorer page here; with a pruner, dense beside pruned.")
    ] = None,
    keep_traces: KeepTraces = True,
    *,
    load: Load,
    as_json: Json = False,
) -> None:
    """Ask a question about images or videos and record where the model looks at every step."""
    import visionpulse_analysis as vpa
    from visionpulse_analysis.explorer.page import check_folder

    sample = drawing(temperature, top_p, top_k, greedy)
    question, image = shown_and_asked(asked, video, fps, sample_fps, turns)
    kept = None if store is None else vpa.TraceStore(store, mode="a")
    dense_id = f"{id}-dense"
    if kept is not None:
        check_free(kept, id, *([dense_id] if explore is not None and pruner else []))
    if explore is not None:  # what can go wrong at the end is found at the beginning
        check_folder(explore)
    pruned = {"pruner": vpa.make_pruner(pruner, **literals(parameter)), "execution": execution} if pruner else {}
    vlm = load(model)
    options: dict[str, Any] = {
        "layers": indices(layers),
        "heads": indices(heads),
        "record": [] if record is None else [name.strip() for name in record.split(",")],
        "sample": sample,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "store": kept,
    }
    trace = vpa.decode(vlm, image, question, ids=id, **pruned, **options)
    if out is not None:
        trace.save(out)
    if explore is not None:
        traces = [vpa.decode(vlm, image, question, ids=dense_id, **options), trace] if pruner else [trace]
        vpa.explore(*traces, store=store).save(explore, keep_traces=keep_traces)
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
        "page": None if explore is None else str(explore),
    }
    show(result, as_json, f"{trace.thinking}\n{trace.answer}")


@command(app)
def quantities(as_json: Json = False) -> None:
    """List what a trace records, with axes, unit and how it is computed; `decode --record` adds the last ones."""
    import visionpulse_analysis as vpa

    known = {name: {"axes": list(row.axes), **row.attrs} for name, row in vpa.list_quantities().items()}
    lines = [
        f"{name} [{', '.join(row['axes'])}]{', ' + row['unit'] if 'unit' in row else ''}\n    {row['how']}"
        for name, row in known.items()
    ]
    show(known, as_json, "\n".join(lines))


@command(app)
def pruners(as_json: Json = False) -> None:
    """List the pruners, with their parameters, defaults and presets (visionpulse:10)."""
    import visionpulse_analysis as vpa
    from visionpulse_analysis.pruners import as_text

    known = vpa.list_pruners()
    about = {
        name: {
            "does": (kind.__doc__ or "").strip().partition("\n")[0],
            "parameters": {field.name: field.default for field in fields(kind)},
            "presets": {preset: dict(given) for preset, given in kind.presets.items()},
        }
        for name, kind in known.items()
    }
    lines = [f"{as_text(kind())}\n    {about[name]['does']}{_named(name, kind)}" for name, kind in known.items()]
    show(about, as_json, "\n".join(lines))


def _named(name: str, kind: Any) -> str:
    """The presets of a pruner, in a line each."""
    return "".join(
        f"\n    {name}:{preset}  {', '.join(f'{key}={value!r}' for key, value in given.items())}"
        for preset, given in kind.presets.items()
    )


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
    path = vpa.explore(first, *others, view=view, store=store).save(out)
    show({"page": str(path), "bytes": Path(path).stat().st_size}, as_json, f"wrote {path}")
