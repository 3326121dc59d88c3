"""Scores count right and wrong as they are, controls really blind the model, and the set cannot change unnoticed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from visionpulse_analysis.models.families import PromptOptions
from visionpulse_analysis.pruners import Random
from visionpulse_analysis.testbed.scenes import horizon
from visionpulse_analysis.testbed.scenes.questions import TASKS, reason
from visionpulse_analysis.testbed.training import evaluation
from visionpulse_analysis.testbed.training import horizon as words
from visionpulse_analysis.testbed.training.evaluation_set import build_items, read_items, write_items

ITEMS = build_items({4: 6, 6: 5})
MODEL = SimpleNamespace(
    name="made", weights_hash="0", n_layers=4, default_anchor=1, prompt_options=PromptOptions(), asking=lambda _: MODEL
)


def trace_of(words):
    """A trace that ends, unless its words do not."""
    meta = {"finished": words[-1] == "<|im_end|>"}
    return SimpleNamespace(tokens=words, answer=" ".join(words[words.index("</think>") + 1 : -1]), meta=meta)


@pytest.fixture
def answering(monkeypatch):
    """Let every question be answered with the words that a function of item and task gives."""

    def install(answers):
        def ask_all(vlm, items, task, **options):
            return [trace_of(answers(item, task)) for item in items]

        monkeypatch.setattr(evaluation, "ask_all", ask_all)

    return install


def true_words(item, task):
    return [t.word for t in reason(item.scene, item.questions[task], np.random.default_rng(0))]


def test_true_traces_score_one_everywhere(answering):
    answering(true_words)
    result = evaluation.evaluate(MODEL, ITEMS, cells=6, controls=False)
    assert {task: s["accuracy"] for task, s in result["tasks"].items()} == dict.fromkeys(TASKS, 1.0)
    assert {size: scores["find"]["n"] for size, scores in result["sizes"].items()} == {"64": 6, "144": 5}
    assert {name: share["share"] for name, share in result["named"].items()} == dict.fromkeys(result["named"], 1.0)
    lengths = [len(true_words(item, "find")) for item in ITEMS[6:]]
    assert result["tasks"]["find"]["mean_tokens"] == np.mean(lengths)
    assert result["tasks"]["find"]["cut_off"] == 0 and "cut off" not in evaluation.format_report(result)


def test_traces_that_were_cut_off_are_counted_and_lengthen_nothing(answering):
    longest = max(ITEMS[6:], key=lambda item: len(true_words(item, "find")))

    def cut(item, task):
        words = true_words(item, task)
        return words if task != "find" or item is not longest else words[:-1] * 9

    answering(cut)
    result = evaluation.evaluate(MODEL, ITEMS, cells=6, controls=False)
    find, ended = result["tasks"]["find"], [item for item in ITEMS[6:] if item is not longest]
    assert find["cut_off"] == 1 and find["mean_tokens"] == np.mean([len(true_words(item, "find")) for item in ended])
    assert f"tokens {find['mean_tokens']:.1f} (1 cut off)" in evaluation.format_report(result)
    answering(lambda item, task: true_words(item, task)[:-1])
    nothing = evaluation.evaluate(MODEL, ITEMS, cells=6, controls=False)
    assert nothing["tasks"]["find"]["mean_tokens"] is None
    assert "none ended (5 cut off)" in evaluation.format_report(nothing)


def test_wrong_answers_and_places_are_counted_as_wrong(answering):
    def wrong(item, task):
        words = true_words(item, task)
        words[-2] = "c15"  # the last word of the answer
        return [{"r0": "r9", "r1": "r9", "none": "r2"}.get(word, word) for word in words]

    answering(wrong)
    result = evaluation.evaluate(MODEL, ITEMS, cells=6, controls=False)
    assert {task: s["accuracy"] for task, s in result["tasks"].items()} == dict.fromkeys(TASKS, 0.0)
    named = [words for item in ITEMS[6:] for task in TASKS for words in [true_words(item, task)]]
    placed = [(word, words[i + 3]) for words in named for i, word in enumerate(words) if word in ("see", "check")]
    rows = [row for _, row in placed if row != "none"]
    assert result["named"]["position"]["share"] == np.mean([row not in ("r0", "r1") for row in rows])
    checked = [said != "none" for word, said in placed if word == "check"]
    assert result["named"]["presence"]["share"] == np.mean(checked)
    assert result["named"]["colour"]["share"] == 1
    # Every scene has a count question, which names an absence; so no scene is right in all places.
    assert result["named"]["presence"]["scenes"] == 5 and result["named"]["presence"]["low"] == 0
    assert result["named"]["colour"]["high"] == 1 and result["named"]["colour"]["low"] < 0.6  # Wilson, 5 of 5


@pytest.mark.parametrize(("image_of", "is_scene"), [(evaluation.noise, False), (evaluation.other_scene, True)])
def test_a_wrong_image_is_shown_and_the_best_guess_is_known(monkeypatch, image_of, is_scene):
    shown, words = [], ("yes yes green " * 4).split()[: len(ITEMS)]

    def decode(vlm, images, questions, **options):
        shown.append(images)
        return [trace_of(["</think>", word, "<|im_end|>"]) for _, word in zip(questions, words, strict=True)]

    monkeypatch.setattr(evaluation, "decode", decode)
    result = evaluation.image_control(MODEL, ITEMS, image_of)
    pictures = {item.scene.render().tobytes() for item in ITEMS}
    for image, item in zip(shown[0], ITEMS, strict=True):
        scene = item.scene.render()
        assert image.shape == scene.shape and image.dtype == np.uint8 and image.tobytes() not in pictures
        assert abs(np.corrcoef(image.ravel(), scene.ravel())[0, 1]) < (0.6 if is_scene else 0.1)
        assert (image.std() > 60) != is_scene
    answers = [item.questions["compare"].answer for item in ITEMS]
    right = [a == w for a, w in zip(answers, words, strict=True)]
    assert result["compare"]["accuracy"] == np.mean(right)
    assert result["compare"]["best_constant_guess"] == max(answers.count("yes"), answers.count("no")) / 11
    assert result["compare"]["answered"] == 8 / 11


def test_the_random_control_is_a_cost_in_points(answering):
    answering(lambda item, task: true_words(item, task) if item.scene.cells == 4 else ["</think>", "<|im_end|>"])
    result = evaluation.random_control(MODEL, ITEMS, np.ones(11, bool), Random(0.05))
    assert (result["dense"], result["random"]) == (1, 6 / 11)
    assert result["cost_points"] == pytest.approx(100 * 5 / 11)
    assert result["low"] < result["cost_points"] < result["high"]


def test_without_the_image_the_horizon_does_not_depend_on_it(vlm, monkeypatch):
    """Cut off from layer 0 on, the model computes the same whatever is in the picture; later or uncut it does not."""
    states, hidden_states, pack = [], words.hidden_states, horizon.pack

    def kept(model, batch):
        states.append(hidden_states(model, batch))
        return states[-1]

    def blackened(rows):
        batch = pack(rows)
        batch.pixels.zero_()
        return batch

    monkeypatch.setattr(words, "hidden_states", kept)
    items = build_items({4: 2})
    horizon.reading_horizon(vlm, items)
    monkeypatch.setattr(horizon, "pack", blackened)
    horizon.reading_horizon(vlm, items)
    cuts = vlm.n_layers + 1
    prefix = pack([(item.scene, horizon._true_traces(item)) for item in items]).prefix
    same = [torch.equal(a[:, prefix:], b[:, prefix:]) for a, b in zip(states[:cuts], states[cuts:], strict=True)]
    assert same == [True] + [False] * vlm.n_layers


def test_the_horizon_knows_whose_tokens_are_read(vlm):
    items = build_items({4: 9})  # more than are read together
    together, alone = horizon.read_tokens(vlm, items), [horizon.read_tokens(vlm, [item]) for item in items]
    for kind, scenes in together.items():
        named = [sum(t.kind == kind for _, truth in horizon._true_traces(item) for t in truth) for item in items]
        assert [one.shape for one in scenes] == [(vlm.n_layers + 1, n) for n in named] and len({*named}) > 1
        assert all(np.array_equal(one, own[kind][0]) for one, own in zip(scenes, alone, strict=True))
        share = sum(one.sum(axis=1) for one in scenes) / sum(named)
        assert np.allclose(horizon.reading_horizon(vlm, items)[kind], share, atol=1e-4)


def test_the_evaluation_set_is_read_as_written_and_cannot_be_changed(tmp_path):
    path = tmp_path / "scenes.jsonl"
    digest = write_items(ITEMS, path)
    assert read_items(path) == ITEMS and len(digest) == 64
    path.write_bytes(path.read_bytes().replace(b"red", b"blu", 1))
    with pytest.raises(ValueError, match=r"scenes\.jsonl was changed: sha256 .* restore it"):
        read_items(path)
    path.with_suffix(".sha256").unlink()
    with pytest.raises(FileNotFoundError, match="no evaluation set"):
        read_items(path)
