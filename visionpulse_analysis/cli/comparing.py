"""One image and question under several pruners: ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    SampleFps,
    Seed,
    Temperature,
    TopK,
    TopP,
    TurnsFile,
    Videos,
    app,
    command,
    drawing,
    indices,
    key_values,
    loads_model,
    show,
    shown_and_asked,
)


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
    import visionpulse_analysis as vpa
    from visionpulse_analysis import figures
    from visionpulse_analysis.experiments.collect import traces_hash
    from visionpulse_analysis.experiments.judging import Reference
    from visionpulse_analysis.studies.pruner_comparison import one_image as side_by_side
    from visionpulse_analysis.studies.pruner_comparison.settings import Basis

    question, shown = shown_and_asked(asked, video, fps, sample_fps, turns)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder")
    if not right and (judge != "exact" or option):
        raise ValueError("--judge and --option say how answers are judged; say --right, the right answer, too")
    reference = Reference(judge, tuple(right), key_values(option)) if right else None
    sample = drawing(temperature, top_p, top_k, greedy)
    vlm = load(model)
    chosen = side_by_side.named_pruners(pruners, Basis.of(vlm), budget)
    traces = side_by_side.decode_side_by_side(
        vlm, shown, question, chosen, store=store, id=id, layers=indices(layers), seed=seed, sample=sample,
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
