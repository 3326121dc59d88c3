"""Twins tuned under a pattern: what they learn, what they are stored as, and that they run under it always."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import visionpulse_analysis as vpa
from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.decoding.active_heads import active_heads, head_ratios
from visionpulse_analysis.decoding.interventions.kinds import Acting, SkipImage, UnderSelection
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
from visionpulse_analysis.models.finding import TWINS
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.pattern import Pattern
from visionpulse_analysis.pruners.vica import ViCA
from visionpulse_analysis.pruners.yopo import YOPO
from visionpulse_analysis.testbed.training.batches import make_batch
from visionpulse_analysis.testbed.training.horizon import tokens_of
from visionpulse_analysis.testbed.training.plan import MIX, Stage
from visionpulse_analysis.testbed.training.scoring import hidden_states
from visionpulse_analysis.testbed.training.training import Trainer
from visionpulse_analysis.testbed.twins import catalogue
from visionpulse_analysis.testbed.twins.patterned import Patterned, score_task
from visionpulse_analysis.testbed.twins.streams import states_under

HEADS = tuple(tuple((layer + head) % 3 > 0 for head in range(4)) for layer in range(8))
PATTERNS = (
    Pattern(),
    Pattern(tuple(range(8)), (0, 1, 2, 3, 5, 6)),
    Pattern((1, 3), (2, 6, 7), 3, HEADS, 0.5),
)


@pytest.mark.parametrize("pattern", PATTERNS, ids=("ordinary", "vica", "mixed"))
def test_two_streams_give_what_masks_give(vlm, pattern):
    batch = make_batch(np.random.default_rng(0), [1, 2], 4, MIX, 2)
    tokens = tokens_of(vlm, batch, pattern)
    with torch.no_grad():
        with Acting(vlm, [UnderSelection(Selection(tokens.layout))]).on(tokens):
            masked = hidden_states(vlm.model, batch)
        streams = states_under(vlm.model, batch, pattern)
    chosen = batch.target != -100
    assert (masked[chosen] - streams[chosen]).abs().max() < 1e-4 * masked[chosen].abs().max()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    plan = (Stage("tune", 2, {4: 1.0}, MIX, 1, 1, (1e-3, 1e-4)),)
    world, start = Patterned(PATTERNS[1], plan), data_folder() / "scenes"

    def run(folder, **options):
        trainer = Trainer(folder, world=world, start=start)
        trainer.run(report=lambda line: None, **options)
        return trainer

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", minutes=1e-9).state["step"] == 1
    parts = run(tmp_path / "parts")
    tower = load_file(start / "model.safetensors")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name
        assert torch.equal(value, tower[name]) == name.startswith("model.visual."), name  # the tower stays
    assert torch.equal(whole.average.lm_head.weight, parts.average.lm_head.weight)


def test_heads_are_kept_by_votes(vlm, pictures):
    ratios = head_ratios(vlm, [(pictures[0], "where is the red circle ?"), (pictures[1], "how many blue shapes ?")])
    assert ratios.shape == (2, vlm.n_layers, vlm.n_heads) and (ratios > 0).all()
    made = np.array([[[5.0, 1.0], [4.0, 0.1]]] * 4 + [[[1.0, 9.0], [0.0, 9.0]]] * 6)
    assert active_heads(made, 0.5, exempt=()) == ((False, True), (False, True))  # six of ten samples outvote four
    assert active_heads(made, 0.5, votes=0.2, exempt=()) == ((False, True), (False, True))
    assert active_heads(made, 0.75, exempt=(0,)) == ((True, True), (False, True))
    # 29 of 100 are not more than 0.29 of them, whatever floats say.
    some = np.array([[[9.0, 1.0], [9.0, 1.0]]] * 29 + [[[0.0, 1.0], [0.0, 1.0]]] * 71)
    assert active_heads(some, 0.5, votes=0.29, exempt=()) == ((False, True), (False, True))
    with pytest.raises(ValueError, match="share"):
        active_heads(made, 0.0)


@pytest.mark.parametrize("name", TWINS)
class TestBundled:
    @pytest.fixture
    def twin(self, name):
        return vpa.load(name)

    @pytest.fixture
    def told(self, name):
        return json.loads((data_folder() / name / "training.json").read_text())

    def test_it_states_its_pattern_and_its_origin(self, name, twin, told):
        assert twin.pattern == catalogue.TWINS[name].pattern == Pattern.of(told["pattern"])
        assert told["model"] == vpa.load("scenes").weights_hash != twin.weights_hash
        assert told["step"] == sum(stage["steps"] for stage in told["plan"])
        size = sum(path.stat().st_size for path in (data_folder() / name).iterdir())
        assert size < 3.3e6

    def test_it_scores_as_stored_and_the_untuned_model_less(self, twin, told, name):
        score = score_task(twin, "find")
        assert score == told["scores"]["under its pattern"]["find"]
        pattern, n = twin.pattern, twin.n_layers
        reading = tuple(layer for layer in range(n) if layer not in pattern.blind)
        pruner = (
            ViCA(reading) if name == "vica" else YOPO(pattern.window, pattern.heads, pattern.mlp_share, len(reading))
        )
        assert score_task(vpa.load("scenes"), "find", pruner=pruner) < score

    def test_weights_of_another_model_refuse_it(self, name, tmp_path, monkeypatch):
        for folder in ("scenes", name):
            shutil.copytree(data_folder() / folder, tmp_path / folder)
        monkeypatch.setenv("VISIONPULSE_DATA", str(tmp_path))
        weights = load_file(tmp_path / "scenes" / "model.safetensors")
        weights["lm_head.weight"] = weights["lm_head.weight"] + 1e-3
        save_file(weights, tmp_path / "scenes" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="is a twin of 'scenes' with weights"):
            vpa.load(name)


def test_the_vica_twin_reads_pictures_in_its_layers_and_nowhere_else(pictures):
    twin = vpa.load("vica")
    prompt = twin.prompt(pictures[0], "where is the red circle ?")
    forced = TeacherForced(twin, [prompt], [[len(prompt.ids) - 1]])
    whole = forced.read()
    for layer in range(twin.n_layers):
        same = np.array_equal(forced.read(SkipImage(layers=[layer])), whole)
        assert same == (layer in twin.pattern.blind), layer


@pytest.mark.parametrize("name", ["diffusion", "yopo"])
def test_what_is_published_is_what_was_trained(tmp_path, monkeypatch, name):
    """The stored facts are those of the run, and the folder loads as the averaged weights under the pattern."""
    world = catalogue.TWINS[name]
    tiny = (Stage("tune", 1, {4: 1.0}, {"find": 1.0}, 1, 1, (1e-3, 1e-4)),)
    monkeypatch.setattr(world, "plan", tiny)
    monkeypatch.setattr(type(world), "score", lambda self, vlm: {"seen": vlm.weights_hash})
    monkeypatch.setattr(catalogue, "ANCHOR_PICTURES", 1)
    trainer = catalogue.train_twin(name, tmp_path / "run", report=lambda line: None)
    catalogue.publish_twin(trainer, tmp_path / name)
    twin, told = (
        vpa.load(str(tmp_path / name), device="cpu"),
        json.loads((tmp_path / name / "training.json").read_text()),
    )
    assert told["weights"] == told["scores"]["seen"] == twin.weights_hash and told["step"] == 1
    assert told["model"] == vpa.load("scenes", device="cpu").weights_hash
    assert twin.pattern == getattr(world, "pattern", Pattern())
    for part, value in trainer.average.state_dict().items():
        kept = value if part.startswith("model.visual.") else value.bfloat16().float()
        assert torch.equal(twin.model.state_dict()[part], kept), part
    with pytest.raises(ValueError, match="unknown twin 'x'; known: diffusion, vica"):
        catalogue.train_twin("x", tmp_path / "x")
