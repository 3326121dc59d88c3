"""Training: the packed loss is that of separate conversations, and a resumed run goes on where it was."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from visionpulse_analysis.testbed import worlds
from visionpulse_analysis.testbed.scenes.questions import TASKS, ask, reason
from visionpulse_analysis.testbed.scenes.scene import COLOURS, SHAPES, generate
from visionpulse_analysis.testbed.scenes.tokens import vocabulary
from visionpulse_analysis.testbed.training import plan, publishing
from visionpulse_analysis.testbed.training.batches import KINDS, READ_OFF_THE_IMAGE, make_batch, make_drill, pack
from visionpulse_analysis.testbed.training.horizon import reading_anchor
from visionpulse_analysis.testbed.training.model import build_image_processor, build_model
from visionpulse_analysis.testbed.training.packing import patches_of
from visionpulse_analysis.testbed.training.plan import MIX, Stage
from visionpulse_analysis.testbed.training.publishing import publish
from visionpulse_analysis.testbed.training.scoring import hidden_states, scores
from visionpulse_analysis.testbed.training.training import Trainer
from visionpulse_analysis.testbed.training.vision import patch_labels, pretrain_vision

TINY = (
    Stage("read", 3, {4: 1.0}, {"describe": 1.0}, 2, 1, (1e-3, 1e-3)),
    Stage("reason", 4, {4: 0.5, 6: 0.5}, MIX, 2, 2, (1e-3, 1e-4), drills=0.5),
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


def test_the_target_of_each_token_is_the_one_after_it(rng):
    both = conversations(generate(5, 6), rng, 2)
    batch, words = pack([(generate(5, 6), both)]), np.array(vocabulary())
    supervised = np.flatnonzero(batch.target[0] != -100)
    expected = [token.word for _, trace in both for token in trace]
    assert words[batch.target[0, supervised].numpy()].tolist() == expected
    follows = batch.ids[0, supervised[:-1] + 1] == batch.target[0, supervised[:-1]]
    ends = words[batch.target[0, supervised[:-1]].numpy()] == "<|im_end|>"
    assert follows[~ends].all() and ends.sum() == 1  # after the first conversation's end mark the second begins
    assert words[batch.ids[0, supervised].numpy()].tolist()[0] == "<think>"


def test_the_fast_attention_equals_the_masked_one(rng):
    model = build_model(0)
    batch = make_batch(rng, [1, 2, 3], 6, MIX, 3)
    loss, counts = scores(model, batch)
    chosen = batch.target != -100
    expected = cross_entropy(model.lm_head(hidden_states(model, batch)[chosen]), batch.target[chosen])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert sum(counts[kind][1] for kind in KINDS) == int(chosen.sum())


def test_accuracy_by_task_is_that_of_its_answers(rng):
    model = build_model(0)
    scene = generate(5, 6)
    for conversation in conversations(scene, rng, 3):
        _, counts = scores(model, pack([(scene, [conversation])]))
        question = conversation[0]
        assert {task: counts[task][1] for task in TASKS} == {
            task: len(question.answer.split()) if task == question.task else 0 for task in TASKS
        }


def test_a_drill_has_no_image_and_a_loss_only_on_what_the_text_determines(rng):
    batch = make_drill(rng, list(range(24)))
    assert batch.pixels is None and batch.grid_thw is None
    chosen = batch.target != -100
    supervised = {KINDS[kind] for kind in batch.kind[chosen].tolist()}
    assert supervised == {"template", "verdict", "answer"} and not supervised & set(READ_OFF_THE_IMAGE)
    image_token = build_model(0).config.image_token_id
    assert not (batch.ids == image_token).any()
    words = np.array(vocabulary())[batch.target[chosen & (batch.kind == KINDS.index("verdict"))].numpy()]
    # Both verdicts are common: a drill in which every object is the one looked for teaches nothing.
    assert min((words == "yes").mean(), (words == "no").mean()) > 0.2


def test_the_loss_of_a_drill_is_that_of_the_unpadded_conversation(rng):
    model = build_model(0)
    together = make_drill(rng, [1, 2])
    with torch.no_grad():
        loss, _ = scores(model, together)
        alone = []
        for row in range(2):
            length = int((together.ids[row] != 0).sum())
            logits = model(input_ids=together.ids[row : row + 1, :length]).logits[0]
            target = together.target[row, :length]
            alone.append((logits[target != -100], target[target != -100]))
    expected = cross_entropy(torch.cat([x for x, _ in alone]), torch.cat([t for _, t in alone]))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_packed_row_is_the_prompt_that_decoding_builds(vlm, rng):
    scene = generate(5, 6)
    question, trace = conversations(scene, rng, 1)[0]
    batch, prompt = pack([(scene, [(question, trace)])]), vlm.prompt(scene.render(), question.text)
    length = len(prompt.ids)
    assert batch.ids[0, :length].tolist() == prompt.ids.tolist()
    assert torch.allclose(batch.pixels, prompt.inputs["pixel_values"], atol=1e-6)
    assert batch.grid_thw.tolist() == prompt.inputs["image_grid_thw"].tolist()
    position, _ = vlm.model.model.get_rope_index(
        prompt.ids[None],
        mm_token_type_ids=(prompt.ids == vlm.model.config.image_token_id).int()[None],
        image_grid_thw=prompt.inputs["image_grid_thw"],
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
    monkeypatch.setattr(worlds, "VISION_STEPS", 2)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, short_vision):
    whole = Trainer(tmp_path / "whole", plan=TINY, seed=3)
    whole.run(report=lambda line: None)
    parts = Trainer(tmp_path / "parts", plan=TINY, seed=3)
    parts.run(minutes=1e-9, report=lambda line: None)
    assert 0 < parts.state["step"] < 7
    while parts.state["stage"] < len(TINY):
        parts = Trainer(tmp_path / "parts", plan=TINY, seed=3)
        parts.run(minutes=1e-9, report=lambda line: None)
    assert parts.state["step"] == whole.state["step"] == 7
    for ours, theirs in ((whole.model, parts.model), (whole.average, parts.average)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    timeless = [{k: v for k, v in run.state.items() if k not in ("seconds", "vision")} for run in (whole, parts)]
    assert timeless[0] == timeless[1] and timeless[0]["running"]
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["stage"] == 2


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Trainer(tmp_path / "file" / "run", plan=TINY)


def test_the_trained_tower_is_kept_before_the_first_step(tmp_path, short_vision, monkeypatch):
    trainer = Trainer(tmp_path, plan=TINY)
    monkeypatch.setattr(trainer, "_step", lambda stage: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.run(report=str)
    again = Trainer(tmp_path, plan=TINY)
    assert again.state["vision"] == trainer.state["vision"]
    pairs = zip(again.model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_another_seed_is_refused(tmp_path, short_vision):
    Trainer(tmp_path, plan=TINY, seed=3).run(minutes=1e-9, report=lambda line: None)
    with pytest.raises(ValueError, match="another seed"):
        Trainer(tmp_path, plan=TINY, seed=4)


def test_training_scenes_are_not_evaluation_scenes():
    from visionpulse_analysis.experiments.samples import FIRST_STUDY_SEED
    from visionpulse_analysis.testbed.training.evaluation_set import SIZES, VALIDATION_SEED

    assert sum(SIZES.values()) < VALIDATION_SEED < VALIDATION_SEED + 10_000 < FIRST_STUDY_SEED
    assert FIRST_STUDY_SEED < plan.FIRST_VISION_SEED
    assert plan.FIRST_VISION_SEED + 24 * plan.VISION_STEPS < plan.FIRST_TRAINING_SEED


def test_a_new_run_goes_on_from_a_published_model(tmp_path, short_vision, monkeypatch):
    first = Trainer(tmp_path / "first", plan=TINY, seed=3)
    first.run(minutes=1e-9, report=lambda line: None)
    monkeypatch.setattr(publishing, "ANCHOR_PICTURES", 2)
    publish(first, tmp_path / "model")
    provenance = json.loads((tmp_path / "model" / "training.json").read_text())
    assert (provenance["seed"], provenance["step"]) == (3, first.state["step"])
    second = Trainer(tmp_path / "second", plan=TINY, seed=4, start=tmp_path / "model")
    for name, value in first.average.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    second.run(minutes=1e-9, report=lambda line: None)
    assert "taken from" in second.state["vision"]


def test_the_anchor_is_the_last_layer_before_half_of_the_reading():
    rows = [0.1, 0.1, 0.2, 0.4, 0.9, 0.9]
    assert reading_anchor({"row": rows, "column": rows}) == 3
    late = [0.1, 0.1, 0.1, 0.1, 0.1, 0.9]
    assert reading_anchor({"row": late, "column": late}) == 4
    assert reading_anchor({"row": rows, "column": [0.1, 0.9, 0.9, 0.9, 0.9, 0.9]}) == 1
