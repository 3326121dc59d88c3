"""Training: the packed loss is that of separate conversations, and a resumed run goes on where it was."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from visionpulse_analysis.testbed import training
from visionpulse_analysis.testbed.batches import make_batch, pack, patches_of
from visionpulse_analysis.testbed.model import build_image_processor, build_model
from visionpulse_analysis.testbed.questions import ask, reason
from visionpulse_analysis.testbed.scenes import COLOURS, SHAPES, generate
from visionpulse_analysis.testbed.training import MIX, Stage, Trainer, hidden_states, scores
from visionpulse_analysis.testbed.vision import patch_labels, pretrain_vision

TINY = (
    Stage("read", 3, {4: 1.0}, {"describe": 1.0}, 2, 1, (1e-3, 1e-3)),
    Stage("reason", 3, {4: 0.5, 6: 0.5}, MIX, 2, 2, (1e-3, 1e-4)),
)


def conversations(scene, rng, count):
    asked = [ask(scene, task, rng) for task in ("find", "compare", "count")[:count]]
    return [(question, reason(scene, question, rng)) for question in asked]


def test_the_packed_loss_is_that_of_separate_conversations(rng):
    model = build_model(0)
    scene = generate(5, 6)
    both = conversations(scene, rng, 3)
    together = pack([(scene, both)])
    with torch.no_grad():
        hidden = hidden_states(model, together)
        chosen = together.target != -100
        packed = model.lm_head(hidden[chosen])
        alone = []
        for conversation in both:
            batch = pack([(scene, [conversation])])
            alone.append(model.lm_head(hidden_states(model, batch)[batch.target != -100]))
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)


def test_the_fast_attention_equals_the_masked_one(rng):
    model = build_model(0)
    batch = make_batch(rng, [1, 2, 3], 6, MIX, 3)
    loss, counts = scores(model, batch)
    chosen = batch.target != -100
    expected = cross_entropy(model.lm_head(hidden_states(model, batch)[chosen]), batch.target[chosen])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert sum(n for _, n in counts.values()) == int(chosen.sum())


def test_a_packed_row_is_the_prompt_that_decoding_builds(vlm, rng):
    scene = generate(5, 6)
    question, trace = conversations(scene, rng, 1)[0]
    batch, prompt = pack([(scene, [(question, trace)])]), vlm.prompt(scene.render(), question.text)
    length = len(prompt.ids)
    assert batch.ids[0, :length].tolist() == prompt.ids.tolist()
    assert torch.allclose(batch.pixels, prompt.pixels, atol=1e-6)
    assert batch.grid_thw.tolist() == prompt.grid_thw.tolist()
    position, _ = vlm.model.model.get_rope_index(
        prompt.ids[None],
        mm_token_type_ids=(prompt.ids == vlm.model.config.image_token_id).int()[None],
        image_grid_thw=prompt.grid_thw,
    )
    assert torch.equal(batch.positions[:, :, :length], position)


def test_patches_are_those_of_the_image_processor():
    image = generate(1, 4).render()
    expected = build_image_processor()(images=[image], return_tensors="np")["pixel_values"]
    assert np.allclose(patches_of(image), expected, atol=1e-6)


def test_patch_labels_say_what_is_where():
    scene = generate(2, 4)
    labels = patch_labels(scene).reshape(8, 8, 4)
    assert ((labels[..., 0] < 8).sum(), (labels[..., 1] < 6).sum()) == (4 * len(scene.objects),) * 2
    for o in scene.objects:
        for patch in labels[2 * o.row : 2 * o.row + 2, 2 * o.col : 2 * o.col + 2].reshape(4, 4):
            assert patch.tolist() == [list(COLOURS).index(o.colour), SHAPES.index(o.shape), o.row, o.col]


def test_vision_pretraining_touches_the_tower_only():
    model = build_model(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pretrain_vision(model, steps=3, seed=0, first_scene=0, images=3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".visual." in name for name in changed)


@pytest.fixture
def short_vision(monkeypatch):
    monkeypatch.setattr(training, "VISION_STEPS", 2)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, short_vision):
    whole = Trainer(tmp_path / "whole", plan=TINY, seed=3)
    whole.run(report=lambda line: None)
    parts = Trainer(tmp_path / "parts", plan=TINY, seed=3)
    parts.run(minutes=1e-9, report=lambda line: None)
    assert 0 < parts.state["step"] < 6
    while parts.state["stage"] < len(TINY):
        parts = Trainer(tmp_path / "parts", plan=TINY, seed=3)
        parts.run(minutes=1e-9, report=lambda line: None)
    assert parts.state["step"] == whole.state["step"] == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["stage"] == 2


def test_another_seed_is_refused(tmp_path, short_vision):
    Trainer(tmp_path, plan=TINY, seed=3).run(minutes=1e-9, report=lambda line: None)
    with pytest.raises(ValueError, match="another seed"):
        Trainer(tmp_path, plan=TINY, seed=4)


def test_training_scenes_are_not_evaluation_scenes():
    from visionpulse_analysis.studies.samples import FIRST_STUDY_SEED
    from visionpulse_analysis.testbed.evaluation_set import SIZES, VALIDATION_SEED

    assert sum(SIZES.values()) < VALIDATION_SEED < VALIDATION_SEED + 10_000 < FIRST_STUDY_SEED
    assert FIRST_STUDY_SEED < training.FIRST_VISION_SEED
    assert training.FIRST_VISION_SEED + 24 * training.VISION_STEPS < training.FIRST_TRAINING_SEED


def test_a_new_run_goes_on_from_a_published_model(tmp_path, short_vision):
    first = Trainer(tmp_path / "first", plan=TINY, seed=3)
    first.run(minutes=1e-9, report=lambda line: None)
    first.publish(tmp_path / "model")
    second = Trainer(tmp_path / "second", plan=TINY, seed=4, start=tmp_path / "model")
    for name, value in first.average.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    second.run(minutes=1e-9, report=lambda line: None)
    assert "taken from" in second.state["vision"]
