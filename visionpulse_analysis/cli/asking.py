"""Ask a model, with or without pruners: ``decode``, ``compare``, ``check``, ``pruners``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from visionpulse_analysis.cli.base import (
    Json,
    Load,
    Model,
    Parameters,
    Seed,
    app,
    command,
    indices,
    key_values,
    literals,
    loads_model,
    recorded,
    show,
)

Asked = Annotated[
    list[str] | None,
    typer.Argument(metavar="[IMAGE]... QUESTION", show_default=False, help="Image files, then the question in quotes."),
]
Videos = Annotated[
    list[Path] | None,
    typer.Option(help="A film, an animated image, or a folder of frames; may be repeated. Images come first."),
]
Fps = Annotated[
    float | None, typer.Option(help="Frames per second of the videos; for folders, and where a file says wrong.")
]
SampleFps = Annotated[float | None, typer.Option(help="Show so many frames per second; all without it.")]
TurnsFile = Annotated[
    Path | None,
    typer.Option(
        help="Ask in several turns, in place of the question: a JSON file with a list of messages in the chat format "
        "of transformers. All arguments are images then."
    ),
]
KeepTraces = Annotated[
    bool,
    typer.Option(
        help="Without --store: keep the traces beside the page (page.html: page.traces), so that its command for a "
        "paper figure works as it stands. They take about 2 bytes per step, layer and patch, a gigabyte or so for a "
        "long answer of a large model; --layers anchor keeps one layer, --no-keep-traces only the page."
    ),
]
Temperature = Annotated[
    float | None, typer.Option(help="Sample at this temperature; as the model's files say without it.")
]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the fewest tokens that hold this much probability, after --top-k.")
]
TopK = Annotated[int | None, typer.Option(help="Sample from so many tokens, the likeliest.")]
MostTokens = Annotated[
    int | None,
    typer.Option(help="A longer trace is cut off; as the model's files say without it, or 256.", show_default=False),
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Take the likeliest token, also where the model's files say to sample.")
]


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
    from visionpulse_analysis.traces.quantities import quantities_of

    sample = drawing(temperature, top_p, top_k, greedy)
    if parameter and not pruner:
        raise ValueError(f"-p {parameter[0]} is a parameter of a pruner; name it: --pruner visionpulse")
    chosen = vpa.make_pruner(pruner, **literals(parameter)) if pruner else None
    options = {**recorded(layers, heads, execution), "sample": sample, "seed": seed, "max_new_tokens": max_new_tokens}
    options["record"] = quantities_of([name.strip() for name in (record or "").split(",") if name.strip()])
    question, image = shown_and_asked(asked, video, fps, sample_fps, turns)
    kept = None if store is None else vpa.TraceStore(store, mode="a")
    dense_id = f"{id}-dense"
    if kept is not None:
        check_free(kept, id, *([dense_id] if explore is not None and pruner else []))
    if explore is not None:  # what can go wrong at the end is found at the beginning
        from visionpulse_analysis.explorer.page import check_folder

        check_folder(explore)
    vlm = load(model)
    options["store"] = kept
    trace = vpa.decode(vlm, image, question, ids=id, pruner=chosen, **options)
    if out is not None:
        trace.save(out)
    if explore is not None:
        options["execution"] = "masked"
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
    written = [out, explore, None if store is None else f"trace {id!r} into {store}"]
    lines = [
        f"{trace.thinking}\n{trace.answer}",
        "" if trace.meta["finished"] else f"(cut off: the limit, --max-new-tokens, is {len(trace)})",
        trace.meta.get("unlike_training", ""),
        *(f"wrote {one}" for one in written if one is not None),
    ]
    show(result, as_json, "\n".join(filter(None, lines)))


@command(app)
@loads_model
def compare(
    pruners: Annotated[
        str, typer.Option(help="Separated by commas, each as decode --pruner takes it: a,b(x=1),c | d.")
    ],
    asked: Asked = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of patches kept, for pruners written without parameters; said where none sets it."),
    ] = None,
    right: Annotated[
        list[str] | None, typer.Option(help="A right answer, by which answers are judged; may be repeated.")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="By which rule: exact, words, relaxed (5 % off), anls or choice.")
    ] = "exact",
    option: Annotated[
        list[str] | None, typer.Option(metavar="LETTER=TEXT", help="Of --judge choice; may be repeated.")
    ] = None,
    video: Videos = None,
    fps: Fps = None,
    sample_fps: SampleFps = None,
    turns: TurnsFile = None,
    model: Model = "scenes",
    layers: Annotated[str, typer.Option(help='"all", "anchor", or indices such as 3,5.')] = "all",
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    greedy: Greedy = False,
    seed: Seed = 0,
    max_new_tokens: MostTokens = None,
    store: Annotated[Path | None, typer.Option(help="Stream the traces into this trace store.")] = None,
    keep_traces: KeepTraces = True,
    id: Annotated[str, typer.Option(help="Beginning of the names of the traces.")] = "compare",
    out: Annotated[Path, typer.Option(help="Folder of the figure and the explorer page.")] = Path("compare"),
    *,
    load: Load,
    as_json: Json = False,
) -> None:
    """Answer a question dense and under several pruners: a table, a figure of what they keep, an explorer page."""
    question, shown = shown_and_asked(asked, video, fps, sample_fps, turns)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder")
    if not right and (judge != "exact" or option):
        raise ValueError("--judge and --option say how answers are judged; say --right, the right answer, too")
    import visionpulse_analysis as vpa
    from visionpulse_analysis.pruners import parts_of

    for one in parts_of(pruners):  # what is wrong is told before torch is imported
        vpa.make_pruner(one)
    sample = drawing(temperature, top_p, top_k, greedy)
    shown_layers = indices(layers, "layers", "all", "anchor", "none")
    from visionpulse_analysis import figures
    from visionpulse_analysis.experiments.collect import traces_hash
    from visionpulse_analysis.experiments.judging import Reference
    from visionpulse_analysis.studies.pruner_comparison import one_image as side_by_side
    from visionpulse_analysis.studies.pruner_comparison.settings import Basis

    reference = Reference(judge, tuple(right), key_values(option)) if right else None
    vlm = load(model)
    chosen = side_by_side.named_pruners(pruners, Basis.of(vlm), budget)
    traces = side_by_side.decode_side_by_side(
        vlm, shown, question, chosen, store=store, id=id, layers=shown_layers, seed=seed, sample=sample,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
    rows = side_by_side.comparison(traces, reference)
    page = vpa.explore(*traces.values(), store=store)
    figure = side_by_side.kept_figure(traces)
    used = {
        "model": model, "weights": vlm.weights_hash, "images": [one for one in shown if isinstance(one, str)],
        "videos": [*map(str, video or ())], "question": question, "prompt_options": vlm.prompt_options.to_dict(),
        "pruners": pruners, "budget": budget,
        **{name: next(iter(traces.values())).meta[name] for name in ("sample", "max_new_tokens")},
        **({} if reference is None else {"right": right, "judge": judge, "options": option}),
    }  # fmt: skip
    about = {"parameters": used, "seed": seed, "data_hash": traces_hash(list(traces.values()))}
    # Nothing is written before everything is there.
    saved = figures.save(figure, "kept", folder=out, numbers={row["name"]: row for row in rows}, **about)
    written = [*map(str, saved), str(page.save(out / "explorer.html", keep_traces=keep_traces))]
    written += [str(out / "explorer.traces")] if keep_traces and store is None else []
    result = {"question": question, "model": model, "seed": seed, "budget": budget, "rows": rows, "written": written}
    lines = [side_by_side.format_comparison(rows), *(f"wrote {path}" for path in written)]
    show(result, as_json, "\n".join(lines))


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


def shown_and_asked(
    asked: list[str] | None,
    videos: list[Path] | None,
    fps: float | None,
    sample_fps: float | None,
    turns: Path | None = None,
) -> tuple[Any, list[Any]]:
    """The question or turns, and the images and videos before it.

    Raises ValueError where there are none, and what `read_image` does: known before a model is loaded.
    """
    import visionpulse_analysis as vpa
    from visionpulse_analysis.media.images import read_image

    if turns is None and not asked:
        raise ValueError("no question given; say it in quotes behind the images, or give --turns")
    question, images = (asked[-1], asked[:-1]) if turns is None and asked else (_turns(turns), list(asked or ()))
    shown = [*images, *(vpa.Video(path, fps, sample_fps) for path in videos or ())]
    if not shown and turns is None:
        raise ValueError(f"no image given with the question {question!r}; put images before it, or say --video")
    for image in images:
        read_image(image)
    return question, shown


def _turns(path: Path | None) -> list[Any]:
    """The messages of a file; paths of pictures in it count from its folder."""
    from visionpulse_analysis.models.asking import are_turns, beside

    try:
        found = json.loads(Path(path or "").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not are_turns(found):
        raise ValueError(f"{path} must hold a list of messages, each with role and content, got {type(found).__name__}")
    return beside(found, Path(path or "").parent)


def drawing(temperature: float | None, top_p: float | None, top_k: int | None, greedy: bool = False) -> Any:
    """How to draw tokens, None for greedy, "model" as the model says; ValueError for a cut without a temperature."""
    if greedy:
        if (temperature, top_p, top_k) != (None, None, None):
            raise ValueError("--greedy draws nothing: leave it out, or --temperature, --top-p and --top-k")
        return None
    if temperature is None:
        if top_p is not None or top_k is not None:
            raise ValueError("--top-p and --top-k are of sampling; say --temperature too (1 is the model's own)")
        return "model"
    from visionpulse_analysis.models.sample import Sample

    return Sample(temperature, 1.0 if top_p is None else top_p, top_k)


def check_free(store: Any, *ids: str) -> None:
    """Raise FileExistsError where a store holds one of the names."""
    taken = [id for id in ids if id in store]
    if taken:
        raise FileExistsError(f"trace {taken[0]!r} exists in {store.path}; choose another --id")
