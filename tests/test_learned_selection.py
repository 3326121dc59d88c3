"""Learned selection: the controls keep what they say, and shares held are counted a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.studies.learned_selection import measure
from visionpulse_analysis.testbed.scenes.truth import object_patches


@pytest.fixture(scope="module")
def scenes():
    return vpa.load("scenes")


@pytest.fixture(scope="module")
def samples():
    return scene_samples(3, cells=4)


@pytest.fixture(scope="module")
def pairs(scenes, samples):
    return measure.pairs_of_samples(scenes, samples, at_once=2)


def test_the_patches_asked_about_are_those_of_the_question_s_objects(scenes, samples, pairs):
    for sample, named in zip(samples, pairs.named, strict=True):
        shown = object_patches(sample.scene, scenes.prompt(sample.image, sample.question).grid)
        assert np.array_equal(named.numpy(), shown[list(sample.truth.targets)].any(axis=0))


def test_given_sets_are_what_every_layer_sees(scenes, samples, pairs):
    scores = measure.given_scores(scenes, pairs)
    truth = measure.chosen(scores[measure.TRUTH], 0.2)
    held = measure.recall(torch.stack([torch.zeros(64, dtype=torch.bool).index_fill(0, torch.tensor(one[1:]), True)
                                       for one in truth.sets]), pairs)  # fmt: skip
    assert np.array_equal(held[np.isfinite(held)], np.ones(np.isfinite(held).sum()))
    for row, sample in enumerate(samples):
        trace = vpa.decode(scenes, sample.image, sample.question, pruner=truth, seed=row, max_new_tokens=2)
        assert (trace.k_per_layer.values == 13).all()
        assert set(np.flatnonzero(trace.kept.values[0])) == set(truth.sets[row][1:])
    with pytest.raises(ValueError, match="no set is given for the rows with seeds"):
        vpa.decode(scenes, samples[0].image, samples[0].question, pruner=truth, seed=99, max_new_tokens=1)


def test_the_controls_change_the_question_alone(scenes, samples, pairs):
    scores = measure.given_scores(scenes, pairs)
    # Without its words, two questions about one picture are one.
    twice = measure.pairs_of_samples(scenes, [samples[0], samples[0]])
    deaf = measure.given_scores(scenes, twice)[measure.NO_QUESTION]
    torch.testing.assert_close(deaf[0], deaf[1])
    torch.testing.assert_close(scores[measure.GUIDE], pairs.words_seen[:, measure.guidance_layer()])
    assert not torch.equal(scores[measure.NO_QUESTION], measure.scored(
        measure.load_head(measure.Scorer, "covipal", scenes.weights_hash), pairs, torch.arange(3)))  # fmt: skip


def test_shares_held_are_counted_one_by_one(pairs):
    kept = torch.rand(pairs.named.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    for found, mine, named in zip(measure.recall(kept, pairs), kept, pairs.named, strict=True):
        places = [place for place, one in enumerate(named.tolist()) if one]
        expected = sum(bool(mine[place]) for place in places) / len(places) if places else float("nan")
        assert found == pytest.approx(expected, nan_ok=True)


def test_samples_without_a_scene_or_of_several_sizes_are_refused(scenes, samples):
    for given in ([measure.Sample("own", samples[0].image, "what ?")], [*samples, *scene_samples(1, cells=6)]):
        with pytest.raises(ValueError, match="scenes of one size with known answers"):
            measure.pairs_of_samples(scenes, given)


@pytest.mark.parametrize("name", ["covipal", "relevance_cnn"])
def test_inside_generate_trained_scorers_read_all_text_and_say_what_decode_says(scenes, samples, name):
    sample, pruner = samples[0], vpa.make_pruner(name, budget=0.2, prompt="text")
    trace = vpa.decode(scenes, sample.image, sample.question, pruner=pruner, max_new_tokens=3, sample=None)
    inputs = scenes.family.batch([scenes.prompt(sample.image, sample.question)], padding=0)
    with vpa.watch(scenes.model, scenes.tokenizer, pruner=pruner) as w:
        scenes.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert np.array_equal(w.traces[0].kept.values, trace.kept.values) and w.traces[0].tokens == trace.tokens
    asked = vpa.decode(scenes, sample.image, sample.question, pruner=vpa.make_pruner(name, budget=0.2),
                       max_new_tokens=1, sample=None)  # fmt: skip
    assert not np.array_equal(asked.kept.values[0], trace.kept.values[0])
    with (
        vpa.watch(scenes.model, scenes.tokenizer, pruner=vpa.make_pruner(name)),
        pytest.raises(ValueError, match="set prompt='text'"),
    ):
        scenes.model.generate(**inputs, max_new_tokens=1)
