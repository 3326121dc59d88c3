"""The model card holds the stored scores, and the stored scores are those of the shipped weights and evaluation set."""

import json
import shutil

import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.metrics.statistics import wilson
from visionpulse_analysis.testbed.training import card
from visionpulse_analysis.testbed.training.evaluation import NAMED, evaluate, evaluation_items
from visionpulse_analysis.testbed.training.plan import PLAN, TRAINED_CELLS
from visionpulse_analysis.testbed.training.publishing import write_card


def stored():
    return json.loads((data_folder() / "scenes" / "evaluation.json").read_text())


def test_the_scores_are_of_these_weights():
    assert stored()["weights"] == vpa.load("scenes").weights_hash


def test_the_bars_of_the_test_bed_hold():
    """Answers, what traces name, and the controls without which no pruning result would mean anything."""
    scores = stored()
    for task, bar in {"find": 0.95, "compare": 0.95, "count": 0.90}.items():
        assert scores["tasks"][task]["accuracy"] >= bar and scores["tasks"][task]["n"] >= 400
        for control in ("control_noise", "control_other_scene"):
            blind = scores[control][task]
            assert blind["low"] <= blind["best_constant_guess"], control
    named = scores["named"]
    assert all(named[name]["share"] >= 0.97 <= named[name]["low"] for name in NAMED)
    assert scores["control_random_5"]["low"] >= 20


def test_the_card_shows_the_stored_scores():
    card = (data_folder() / "README.md").read_text()
    for patches, tasks in stored()["sizes"].items():
        for task, s in tasks.items():
            assert (
                f"| {patches} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['n']} |" in card
            )
    assert (data_folder() / "evaluation" / "scenes.sha256").read_text().split()[0] in card


def test_scoring_again_agrees_with_the_stored_scores():
    items = [item for item in evaluation_items() if item.scene.cells == 8][:24]
    again = evaluate(vpa.load("scenes"), items, controls=False)["tasks"]
    for task, s in stored()["tasks"].items():
        assert again[task]["low"] <= s["accuracy"] <= again[task]["high"], task


def test_weights_are_small():
    assert sum(path.stat().st_size for path in (data_folder() / "scenes").glob("*.safetensors")) <= 16e6


def test_evidence_is_read_above_the_default_anchor():
    """The control of the test bed: random patches from the anchor on must cost find accuracy."""
    from visionpulse_analysis.pruners import Random
    from visionpulse_analysis.testbed.training.evaluation import ask_all, random_control, right_answers

    vlm, items = vpa.load("scenes"), [item for item in evaluation_items() if item.scene.cells == 8][:48]
    dense = right_answers(items, "find", ask_all(vlm, items, "find"))
    assert random_control(vlm, items, dense, Random(0.05))["cost_points"] >= 20


def test_the_card_is_what_the_stored_scores_write(tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data_folder(), copy)
    before = (copy / "README.md").read_text()
    assert write_card(stored(), copy) == copy / "README.md"
    assert (copy / "README.md").read_text() == before
    with pytest.raises(ValueError, match="these are scores of weights 0"):
        write_card({**stored(), "weights": "0"}, copy)
    for missing in ("horizon", "untrained"):
        with pytest.raises(ValueError, match="evaluate with controls"):
            write_card({name: value for name, value in stored().items() if name != missing}, copy)


def test_the_card_names_the_sizes_that_were_trained_and_scores_others():
    text, scores = (data_folder() / "README.md").read_text(), stored()
    assert TRAINED_CELLS == tuple(sorted({size for stage in PLAN for size in stage.sizes}))
    assert f"trained on {', '.join(f'{size} x {size}' for size in TRAINED_CELLS)} cells" in text.replace("\n", " ")
    assert set(scores["untrained"]).isdisjoint(str((2 * size) ** 2) for size in TRAINED_CELLS)
    for patches, tasks in scores["untrained"].items():
        for task, s in tasks.items():
            assert f"| {patches} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}]" in text


def test_the_sentences_of_the_card_follow_its_scores():
    """Scores that say the contrary turn every sentence round."""
    scores = stored()
    sure, none = {"accuracy": 0.99, "n": 200}, {"accuracy": 0.01, "n": 200}
    guess = {"best_constant_guess": 0.5}

    def made(dense, control, untrained, random):
        tasks = dict.fromkeys(scores["tasks"], dense)
        same = control | guess
        blind = {name: dict.fromkeys(tasks, same) for name in card.CONTROLS.values()}
        return {
            **{"tasks": tasks, "sizes": {"256": tasks}, "untrained": {"196": dict.fromkeys(tasks, untrained)}},
            **{**blind, "control_random_5": {"dense": 0.9, "random": random, "n": 200}},
        }

    good, bad = made(sure, none, none, 0.2), made(none, sure, sure, 0.95)
    assert "in *find*, *compare*, *count*;" in card.from_image(good) and "; in no task it is" in card.from_image(good)
    assert "these in no task;" in card.from_image(bad) and "*count* with another scene more is" in card.from_image(bad)
    assert "*find* at 196" in card.about_sizes(good) and "On none of them" in card.about_sizes(bad)
    assert "So evidence is still read above" in card.above_anchor(good)
    assert "is not shown" in card.above_anchor(bad)
    # Apart each for itself by 95 % intervals, and not by those that hold for all scores together.
    near = made({"accuracy": 0.5, "n": 200}, {"accuracy": 0.36, "n": 200}, {"accuracy": 0.36, "n": 200}, 0.81)
    noise = {"accuracy": 0.45, "n": 200, "best_constant_guess": 0.36}
    near["control_noise"] = dict.fromkeys(near["tasks"], noise)
    assert wilson(0.5, 200, 0.95)[0] > wilson(0.36, 200, 0.95)[1]
    assert "these in no task; in no task" in card.from_image(near)
    assert "On none of them" in card.about_sizes(near) and "is not shown" in card.above_anchor(near)


def test_the_scores_of_charts_are_of_their_weights_and_on_the_card(tmp_path):
    from visionpulse_analysis.testbed.charts.card import charts_card
    from visionpulse_analysis.testbed.training.publishing import write_charts_card

    of_charts, training = (
        json.loads((data_folder() / "charts" / f"{name}.json").read_text()) for name in ("evaluation", "training")
    )
    assert of_charts["weights"] == vpa.load("charts").weights_hash
    assert charts_card(of_charts, training) in (data_folder() / "README.md").read_text()
    with pytest.raises(ValueError, match="these are scores of weights 0"):
        write_charts_card({**of_charts, "weights": "0"}, tmp_path)
    ended = charts_card(of_charts, {**training, "stage": len(training["plan"])})
    assert "its plan ended" in ended
