"""Training on charts: tower labels, packed rows, a run that goes on where it was, and what is kept of it."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.cli import app
from visionpulse_analysis.models.loading import load
from visionpulse_analysis.testbed.charts import plan, world
from visionpulse_analysis.testbed.charts.chart import COLOURS, generate
from visionpulse_analysis.testbed.charts.dense import DENSE
from visionpulse_analysis.testbed.charts.drawing import render
from visionpulse_analysis.testbed.charts.glyphs import GLYPHS
from visionpulse_analysis.testbed.charts.language import LANGUAGE
from visionpulse_analysis.testbed.charts.plan import AGAIN, LAST, MIX, PLAN, READING, REASONING, ChartStage
from visionpulse_analysis.testbed.charts.questions import TASKS
from visionpulse_analysis.testbed.charts.reasoning import FROM_IMAGE
from visionpulse_analysis.testbed.charts.regions import Thing, patches_of_thing
from visionpulse_analysis.testbed.charts.tower import LABELS, patch_labels
from visionpulse_analysis.testbed.charts.world import CHARTS, converse, make_batch
from visionpulse_analysis.testbed.training.model import save_bundle
from visionpulse_analysis.testbed.training.packing import Language, pack_images
from visionpulse_analysis.testbed.training.scoring import hidden_states, scores
from visionpulse_analysis.testbed.training.training import Trainer

TINY = (
    ChartStage("see", 1, {12: 1.0}, {}, 144, 0, (1e-3, 1e-3), 1.0),
    ChartStage("reason", 2, {12: 1.0}, MIX, 144, 1, (1e-3, 1e-4), 0.05),
)


def test_patch_labels_are_what_is_drawn():
    for seed in range(20):
        chart = generate(seed, 16)
        labels = patch_labels(chart).reshape(chart.side, chart.side, -1)
        assert (labels.max(axis=(0, 1)) < list(LABELS.values())).all()
        glyphs = glyphs_written(chart)
        drawn = {
            g: int((labels[..., 0] == 1 + i).sum()) for i, g in enumerate(GLYPHS) if (labels[..., 0] == 1 + i).any()
        }
        assert drawn == glyphs
        for s in range(len(chart.names)):
            for m in range(chart.n_marks):
                top = patches_of_thing(chart, Thing("top", m, s))
                assert (labels[top, 3] > 0).any()
                if chart.kind in ("bar", "grouped"):
                    row = int((chart.points[s, m, 1] + 1) // 8)
                    assert top.any(axis=1).nonzero()[0].tolist() == [row]
                    colours = labels[patches_of_thing(chart, Thing("mark", m, s)), 1]
                    assert (colours > 0).all() and 1 + list(COLOURS).index(chart.colours[s]) in colours
        assert labels[..., 4].tolist() == np.repeat(np.arange(16)[:, None], 16, axis=1).tolist()


def glyphs_written(chart) -> dict[str, int]:
    ticks = "".join(str(i * chart.step) for i in range(chart.intervals + 1))
    text = ticks + "".join(chart.labels) + "".join(chart.names)
    return {glyph: text.count(glyph) for glyph in GLYPHS if glyph in text}


def test_the_tower_learns_alone_and_its_read_outs_with_it():
    model = CHARTS.build(0)
    beside = CHARTS.beside(model, 0)
    loss, counts = CHARTS.loss(model, beside, TINY[0], 0, 0)
    loss.backward()
    touched = {name for name, value in model.named_parameters() if value.grad is not None}
    assert touched and all(".visual." in name for name in touched)
    assert all(value.grad is not None for value in beside.parameters())
    assert {"see letter", "see digit", "see top", "see row"} <= set(counts)


def test_each_step_is_a_function_of_seed_and_step_and_counts_every_word():
    model = CHARTS.build(0)
    beside = CHARTS.beside(model, 0)
    with torch.no_grad():
        first, counts = CHARTS.loss(model, beside, TINY[1], 0, 5)
        again, _ = CHARTS.loss(model, beside, TINY[1], 0, 5)
        other, _ = CHARTS.loss(model, beside, TINY[1], 1, 5)
    assert first == again != other
    assert counts["answer"][1] == sum(counts[task][1] for task in LANGUAGE.tasks) == 1


def test_a_stage_may_draw_some_kinds_of_charts_only(monkeypatch):
    drawn = []
    monkeypatch.setattr(world, "generate", lambda *given: drawn.append(given) or generate(*given))
    stage = ChartStage("bars", 1, {12: 1.0}, {}, 20 * 144, 0, (1e-3, 1e-3), 1.0, kinds={"bar": 1.0, "line": 3.0})
    model = CHARTS.build(0)
    CHARTS.loss(model, CHARTS.beside(model, 0), stage, 0, 0)
    kinds = [kind for _, _, kind in drawn]
    assert len(kinds) == 20 and set(kinds) == {"bar", "line"} and kinds.count("line") > kinds.count("bar")


def test_a_word_of_the_image_weighs_more(rng):
    """The loss is the mean in which each kind has its weight, summed slowly."""
    model, batch = CHARTS.build(0), make_batch(rng, [generate(3, 12)], MIX, 2)
    with torch.no_grad():
        loss, _ = scores(model, batch, LANGUAGE)
        chosen = batch.target != -100
        logs = model.lm_head(hidden_states(model, batch)[chosen]).log_softmax(-1)
    total, weights = 0.0, 0.0
    for row, target, kind in zip(logs, batch.target[chosen], batch.kind[chosen], strict=True):
        weight = 3.0 if LANGUAGE.kinds[kind] in FROM_IMAGE and LANGUAGE.kinds[kind] != "met" else 1.0
        total, weights = total - weight * float(row[target]), weights + weight
    assert float(loss) == pytest.approx(total / weights, rel=1e-4)


def test_kinds_and_tasks_do_not_share_names():
    with pytest.raises(ValueError, match="at once: \\['sum'\\]"):
        Language(("a",), "a", ("sum", "answer"), ("sum",), ())
    assert set(READING) == set(AGAIN) == set(DENSE) and set(REASONING) == set(TASKS)
    assert set(MIX) == set(LAST) == {*DENSE, *TASKS}


def test_a_packed_row_is_the_prompt_that_decoding_builds(tmp_path, rng):
    save_bundle(CHARTS.build(0), tmp_path, LANGUAGE.words, LANGUAGE.system_prompt)
    chart, vlm = generate(5, 16), load(str(tmp_path))
    question, trace = converse(chart, "above", rng)
    batch = pack_images([(render(chart), [(question, trace)])], LANGUAGE)
    prompt = vlm.prompt(render(chart), question.text)
    assert batch.ids[0, : len(prompt.ids)].tolist() == prompt.ids.tolist()
    assert torch.allclose(batch.pixels, prompt.inputs["pixel_values"], atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one_and_what_is_kept_goes_on(tmp_path):
    whole = Trainer(tmp_path / "whole", world=CHARTS, plan=TINY, seed=3)
    whole.run(keep=tmp_path / "kept", report=str)
    parts = Trainer(tmp_path / "parts", world=CHARTS, plan=TINY, seed=3)
    while parts.state["stage"] < len(TINY):
        parts.run(minutes=1e-9, report=str)
        parts = Trainer(tmp_path / "parts", world=CHARTS, plan=TINY, seed=3)
    for name in ("model", "average", "beside"):
        stored = getattr(parts, name).state_dict()
        assert stored and all(torch.equal(v, stored[k]) for k, v in getattr(whole, name).state_dict().items()), name
    assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) < 5_000_000
    shutil.copytree(tmp_path / "kept", tmp_path / "next")
    again = Trainer(tmp_path / "next", world=CHARTS, plan=(*TINY, TINY[1]), seed=3)
    assert again.state == whole.state
    for k, v in whole.model.state_dict().items():
        assert torch.equal(v.bfloat16().float(), again.model.state_dict()[k])
        assert torch.equal(again.average.state_dict()[k], again.model.state_dict()[k])
    again.run(minutes=1e-9, report=str)
    assert again.state["step"] == 4


def test_the_curves_hold_every_score(tmp_path, monkeypatch):
    monkeypatch.setattr("visionpulse_analysis.testbed.training.training.REPORT_EVERY", 1)
    trainer = Trainer(tmp_path, world=CHARTS, plan=[replace(TINY[0], steps=2)])
    trainer.run(keep=tmp_path / "kept", report=str)
    rows = list(csv.DictReader((tmp_path / "kept" / "curves.csv").open()))
    assert {row["step"] for row in rows} == {"1", "2"} and {row["stage"] for row in rows} == {"see"}
    last = {row["score"]: float(row["value"]) for row in rows if row["step"] == "2"}
    running = json.loads((tmp_path / "state.json").read_text())["running"]
    assert {k: pytest.approx(v, abs=1e-4) for k, v in running.items()} == {k: v for k, v in last.items() if k != "loss"}


def test_what_was_noted_after_the_last_checkpoint_is_not_noted_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("visionpulse_analysis.testbed.training.training.REPORT_EVERY", 1)
    Trainer(tmp_path, world=CHARTS, plan=TINY[:1]).run(report=str)
    before = (tmp_path / "curves.csv").read_text()
    (tmp_path / "curves.csv").write_text(before + "2,9,see,loss,1.0\n10,9,see,loss,1.0\n")
    Trainer(tmp_path, world=CHARTS, plan=TINY[:1])
    assert (tmp_path / "curves.csv").read_text() == before


def test_the_training_that_stands_in_the_repository_can_go_on(tmp_path):
    shutil.copytree(data_folder() / "charts", tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "training.json").read_text())
    trainer = Trainer(tmp_path / "run", world=CHARTS, seed=stored["seed"])
    assert trainer.state["step"] == stored["step"] > 0
    names = [stage["name"] for stage in stored["plan"]]
    assert names == [stage.name for stage in PLAN], "the stage to go on from is counted in the plan"
    # What it has learned it still knows: its words have kept their places.
    with torch.no_grad():
        _, counts = CHARTS.loss(trainer.model, trainer.beside, replace(TINY[1], tasks={"describe": 1.0}), 0, 0)
    assert counts["template"][0] >= 0.9 * counts["template"][1]


def test_training_charts_are_not_those_that_are_studied():
    from visionpulse_analysis.experiments.samples import FIRST_STUDY_SEED

    assert FIRST_STUDY_SEED + 10_000_000 < plan.FIRST_TRAINING_SEED
    assert all(stage.patches // min(stage.sizes) ** 2 <= plan.MOST_IMAGES for stage in PLAN)


def test_the_command_says_which_worlds_there_are(tmp_path):
    run = CliRunner().invoke(app, ["train", "--world", "maps", "--folder", str(tmp_path)])
    assert run.exit_code != 0 and "scenes, charts" in str(run.output) + str(run.exception)


def test_a_published_model_is_loaded_and_a_copy_of_its_folder_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr("visionpulse_analysis.testbed.training.publishing.ANCHOR_PICTURES", 1)
    monkeypatch.setattr("visionpulse_analysis.testbed.training.training.REPORT_EVERY", 1)
    monkeypatch.setattr(world.Charts, "plan", TINY[:1])
    published, folder = tmp_path / "model", tmp_path / "run"
    asked = ["train", "--world", "charts", "--folder", str(folder), "--publish", str(published), "--minutes"]
    assert CliRunner().invoke(app, [*asked, "1e-9"]).exit_code == 0
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    assert CliRunner().invoke(app, [*asked, "0"]).exit_code == 0
    assert before == {path.name: path.read_bytes() for path in published.iterdir()}, "0 minutes train nothing"
    vlm, run = load(str(published)), Trainer(folder, world=CHARTS)
    assert vlm.model.dtype == torch.float32
    for name, value in vlm.model.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name].bfloat16().float()), name
    assert vlm.tokenizer.get_vocab() == LANGUAGE.ids
    copy = Trainer(shutil.copytree(published, tmp_path / "copy"), world=CHARTS)
    assert copy.state == run.state and (tmp_path / "copy" / "curves.csv").exists()
    assert torch.equal(copy.beside.weight, run.beside.weight.bfloat16().float())
