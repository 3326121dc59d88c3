"""Train the bundled model and score it: ``train`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpulse_analysis._util.files import own_data_folder
from visionpulse_analysis.cli.base import Json, Load, Model, app, command, loads_model, show, told


@command(app)
def train(
    world: Annotated[str, typer.Option(help="scenes or charts.")] = "scenes",
    folder: Annotated[
        Path | None,
        typer.Option(help="Checkpoints; training goes on from what is there. By default runs/ and the world's name."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after this much time, once the vision tower is trained; 0: only publish."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes weights and batches.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    start: Annotated[Path | None, typer.Option(help="A published model to go on from, in a new folder.")] = None,
    publish: Annotated[Path | None, typer.Option(help="Write the averaged weights as a model here at the end.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="At each checkpoint, write a small one here, for a repository.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Train this head beside the bundled model instead: covipal ..; a wrong name lists all."),
    ] = None,
    twin: Annotated[
        str | None,
        typer.Option(help="Train this twin of the bundled model instead, from its weights; a wrong name lists all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the bundled model, or a head beside it, or a twin of it, or go on training it."""
    if twin is not None:
        _train_twin(twin, folder, minutes, seed, device, threads, publish, as_json)
        return
    if head is not None:
        _train_head(head, Path("runs") / "heads" if folder is None else folder, seed, threads, as_json)
        return
    if world not in ("scenes", "charts"):
        raise ValueError(f"unknown world {world!r}; known: scenes, charts")
    if start is not None and not (start / "model.safetensors").is_file():
        raise FileNotFoundError(f"--start {start} is no published model: it has no model.safetensors")
    from visionpulse_analysis.models.finding import check_names

    check_names(device=device)
    from visionpulse_analysis.testbed.charts.world import CHARTS
    from visionpulse_analysis.testbed.training.publishing import publish as publish_model
    from visionpulse_analysis.testbed.training.training import Trainer
    from visionpulse_analysis.testbed.worlds import SCENES

    folder = Path("runs") / world if folder is None else folder
    trainer = Trainer(
        folder, world=SCENES if world == "scenes" else CHARTS, seed=seed, device=device, threads=threads, start=start
    )
    trainer.run(minutes=minutes, keep=keep, report=told)
    if publish is not None:
        publish_model(trainer, publish)
    show(
        trainer.state,
        as_json,
        f"step {trainer.state['step']}, {trainer.state['seconds'] / 60:.1f} minutes in all",
    )


def _train_head(name: str, folder: Path, seed: int, threads: int | None, as_json: bool) -> None:
    from visionpulse_analysis.testbed.heads import check_head

    check_head(name)  # before torch is imported
    import visionpulse_analysis as vpa
    from visionpulse_analysis.pruners.heads import read_training
    from visionpulse_analysis.testbed.heads.catalogue import train_head

    vlm = vpa.load("scenes", device="cpu")
    written = train_head(vlm, name, folder, seed=seed, threads=threads, report=told)
    training = read_training(str(written))
    show({"folder": str(written), **training}, as_json, f"wrote {written}: {training['scores']}")


def _train_twin(
    name: str, folder: Path | None, minutes: float | None, seed: int, device: str, threads: int | None,
    publish: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from visionpulse_analysis.testbed.twins.catalogue import publish_twin, train_twin

    trainer = train_twin(
        name, Path("runs") / name if folder is None else folder, seed=seed, minutes=minutes, device=device,
        threads=threads, report=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    if publish is not None:
        publish_twin(trainer, publish)
    state = trainer.state
    show(state, as_json, f"step {state['step']}, {state['seconds'] / 60:.1f} minutes in all")


@command(app)
@loads_model
def evaluate(
    model: Model = "scenes",
    cells: Annotated[int, typer.Option(help="Scene size of the headline numbers, cells per side.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many scenes of each size.")] = None,
    controls: Annotated[bool, typer.Option(help="Also measure noise, random patches and the reading horizon.")] = True,
    card: Annotated[bool, typer.Option("--card", help="Store the bundled model's scores and write its card.")] = False,
    *,
    load: Load,
    as_json: Json = False,
) -> None:
    """Score a model on the evaluation set that ships with the project, or on charts if these are its world."""
    if card and (model not in ("scenes", "charts") or limit is not None):
        raise ValueError(
            "--card stores the scores of a bundled model on the whole evaluation set; drop --model and --limit"
        )
    if card:
        own_data_folder()  # what is wrong is told before torch is imported
    from visionpulse_analysis.testbed.charts import evaluation as charts
    from visionpulse_analysis.testbed.training import evaluation, publishing

    vlm = load(model)
    if charts.speaks_of_charts(vlm):
        scores = charts.evaluate(vlm, limit or charts.EACH)
        if card:
            publishing.write_charts_card(scores)
        show(scores, as_json, charts.format_report(scores))
        return

    items = evaluation.evaluation_items()
    if limit is not None:
        sizes = sorted({item.scene.cells for item in items})
        items = [i for size in sizes for i in [x for x in items if x.scene.cells == size][:limit]]
    result = evaluation.evaluate(vlm, items, cells=cells, controls=controls)
    if card:
        publishing.write_card(result)
    show(result, as_json, evaluation.format_report(result))
