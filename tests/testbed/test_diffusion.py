"""The diffusion twin: its canvases and loss, a resumed run, and weights that are worth what is stored of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.models.loading import load
from visionpulse_analysis.testbed.diffusion import twin
from visionpulse_analysis.testbed.diffusion.canvases import (
    DIRECT,
    PLACES,
    canvas_of,
    diffusion_loss,
    draw_batch,
    mask_pairs,
    pack_canvases,
)
from visionpulse_analysis.testbed.diffusion.world import FIRST_DIFFUSION_SEED, DiffusionScenes
from visionpulse_analysis.testbed.scenes.questions import ask
from visionpulse_analysis.testbed.scenes.scene import generate
from visionpulse_analysis.testbed.training.batches import LANGUAGE
from visionpulse_analysis.testbed.training.model import build_model
from visionpulse_analysis.testbed.training.plan import Stage
from visionpulse_analysis.testbed.training.scoring import hidden_states
from visionpulse_analysis.testbed.training.training import Trainer

MASK = LANGUAGE.ids["<|unk|>"]


@pytest.fixture(scope="module")
def bundled():
    return load("diffusion", device="cpu")


def canvases(rng, scene, directs=(False, True)):
    return [canvas_of(scene, ask(scene, "find", rng), direct) for direct in directs]


def test_an_answer_sees_later_words_and_the_prompt_does_not_see_the_answer(rng):
    model, scene = build_model(0), generate(3, 4)
    batch, answer = pack_canvases([(scene, canvases(rng, scene))])
    with torch.no_grad():
        before = hidden_states(model, batch)[0]
        first, last = (int(one) for one in answer[0].nonzero()[[0, PLACES["find"] - 1], 0])
        batch.ids[0, last] = LANGUAGE.ids["red"]
        after = hidden_states(model, batch)[0]
    moved = (before - after).abs().amax(dim=1)
    assert moved[first] > 1e-4
    assert not moved[:first].any() and not moved[last + 1 :].any()  # prompt, and the conversation beside it


def test_what_is_predicted_is_the_word_behind_and_the_canvas_is_whole(rng):
    scene = generate(3, 4)
    said = canvases(rng, scene)
    batch, answer = pack_canvases([(scene, said)])
    words = [LANGUAGE.words[i] for i in batch.ids[0, answer[0]].tolist()]
    assert words == [token.word for canvas in said for token in canvas.said]
    at = (batch.target[0] != -100).nonzero()[:, 0]
    assert torch.equal(batch.target[0, at], batch.ids[0, at + 1]) and answer[0, at + 1].all()
    thought = batch.ids[0] == LANGUAGE.ids["</think>"]
    assert thought.sum() == 2 and (thought & ~answer[0]).sum() == 1  # without thoughts, they are over in the prompt


def test_the_loss_is_that_of_each_canvas_by_itself(rng):
    """LLaDA-V: sum of the cross-entropy of the masked words over p, by the length of the canvas, mean over canvases."""
    model, scene = build_model(0), generate(3, 4)
    said = [canvas for canvas in canvases(rng, scene) for _ in range(2)]
    batch, answer = pack_canvases([(scene, said)])
    weights = mask_pairs(batch, answer, said, np.random.default_rng(5))
    with torch.no_grad():
        found = diffusion_loss(model, batch, weights)[0]
    masked, draw, expected, at = batch.ids == MASK, np.random.default_rng(5), 0.0, 0
    sides = masked[answer].split([len(canvas.said) for canvas in said])
    assert all((a ^ b).all() and a.any() for a, b in zip(sides[::2], sides[1::2], strict=True))  # complementary
    for number, canvas in enumerate(said):
        n = len(canvas.said)
        if number % 2 == 0:
            share = draw.random() * 0.999 + 0.001
            _ = draw.random(n), draw.integers(n)
        alone, where = pack_canvases([(scene, [canvas])])
        hit = sides[number]
        alone.ids[0, where[0].nonzero()[hit, 0]] = MASK
        with torch.no_grad():
            logits = model.lm_head(hidden_states(model, alone))[0]
        places = where[0].nonzero()[:, 0][hit]
        words = torch.tensor([LANGUAGE.ids[token.word] for token in canvas.said])[hit]
        p = share if number % 2 == 0 else max(1 - share, 0.001)
        expected += float(cross_entropy(logits[places - 1], words, reduction="sum")) / p / n / len(said)
        at += n
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_few_steps_lower_the_loss_and_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    class Tiny(DiffusionScenes):
        plan = (Stage("adapt", 6, {4: 1.0}, {"find": 1.0}, 2, 1, (1e-3, 1e-3)),)

    def trainer(name):
        return Trainer(tmp_path / name, world=Tiny(), start=data_folder() / "scenes")

    whole, halves = trainer("whole"), trainer("halves")
    batch, weights = draw_batch(np.random.default_rng(0), range(FIRST_DIFFUSION_SEED - 4, FIRST_DIFFUSION_SEED), 4,
                                {"find": 1.0}, 1, 0.0)  # fmt: skip
    with torch.no_grad():
        before = float(diffusion_loss(whole.model, batch, weights)[0])
    whole.run(report=lambda line: None)
    with torch.no_grad():
        assert float(diffusion_loss(whole.model, batch, weights)[0]) < before
    halves.run(minutes=1e-9, report=lambda line: None)  # one step
    assert halves.state["step"] == 1
    again = trainer("halves")
    again.run(report=lambda line: None)
    assert all(torch.equal(a, b) for a, b in zip(whole.average.parameters(), again.average.parameters(), strict=True))
    tower = whole.model.model.visual.state_dict()
    bundled = load("scenes", device="cpu").model.model.visual.state_dict()
    assert all(torch.equal(tower[name], value) for name, value in bundled.items())


def test_the_bundled_weights_are_worth_what_is_stored_of_them(bundled):
    told = json.loads((data_folder() / "diffusion" / "training.json").read_text())
    assert told["weights"] == bundled.weights_hash
    for task in (*PLACES, DIRECT):
        asked = twin.draw_asked(12, task, first_seed=twin.FIRST_SCORE_SEED)
        stored = twin.draw_asked(twin.SCORED, task, first_seed=twin.FIRST_SCORE_SEED)[:12]
        assert [one.question for one in asked] == [one.question for one in stored]
        found = twin.right(asked, twin.denoise_all(bundled, asked, layers="none"))
        missed = twin.SCORED - round(told["scores"]["tasks"][task] * twin.SCORED)
        assert 12 - found.sum() <= missed and found.mean() >= 0.5
    files = [path for path in (data_folder() / "diffusion").iterdir() if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in files) < 3.5e6


def test_iteration_is_needed_noise_gives_nothing_and_untrained_weights_nothing_either(bundled):
    asked = twin.draw_asked(8, "compare", first_seed=twin.FIRST_SCORE_SEED)
    traces = twin.denoise_all(bundled, asked, layers="none")
    at_once = twin.denoise_all(bundled, asked, layers="none", steps=1)
    assert twin.whole(asked, at_once).sum() < twin.whole(asked, traces).sum()
    orders = {json.dumps(trace.meta["denoising"]["places"]) for trace in traces}
    assert len(orders) > 4
    blank = [np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in range(8)]
    assert not twin.whole(asked, twin.denoise_all(bundled, asked, layers="none", images=blank)).any()
    other = load("scenes", device="cpu")  # the weights that the twin was adapted from
    assert not twin.whole(asked, twin.denoise_all(other, asked, layers="none")).any()


def test_a_twin_of_another_model_is_refused(tmp_path):
    folder = tmp_path / "diffusion"
    shutil.copytree(data_folder() / "diffusion", folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "visionpulse_twin": {"name": "scenes", "weights": "0000"}}))
    with pytest.raises(ValueError, match="is a twin of 'scenes' with weights 0000"):
        load(str(folder), device="cpu")


def test_questions_without_a_canvas_are_refused(rng):
    scene = generate(3, 4)
    with pytest.raises(ValueError, match="canvases for find, compare"):
        canvas_of(scene, ask(scene, "count", rng), direct=False)
    mixed = [*twin.draw_asked(1, "find", first_seed=1), *twin.draw_asked(1, "compare", first_seed=1)]
    with pytest.raises(ValueError, match=r"canvases of one length, got \[20, 44\]"):
        twin.denoise_all(None, mixed)
