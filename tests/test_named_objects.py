"""The set of the named objects: that of the scene itself, at every step of every row."""

from __future__ import annotations

import numpy as np
import pytest
from made_scene import OBJECTS, WORDS, cell_patches, sample_of, trace_of
from slow_pruners import random_batch

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments import conditions as arms
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.studies.step_dependence.fixed_sets import (
    NAMED,
    NamedObjects,
    greedy_named_arm,
    named_arm,
    named_patches,
)


def test_the_patches_are_those_of_the_cells_of_the_objects_that_a_trace_names(rng):
    grid = trace_of(rng.dirichlet(np.ones(64), (len(WORDS), 1))).grid
    scene = sample_of().scene
    assert scene is not None
    cells = [set(cell_patches(o)) for o in OBJECTS]
    assert set(np.flatnonzero(named_patches(scene, WORDS, grid))) == cells[0] | cells[1]
    assert set(np.flatnonzero(named_patches(scene, WORDS[8:], grid))) == cells[1]
    assert not named_patches(scene, ["we", "want"], grid).any()


def test_every_row_keeps_its_own_set_at_every_step(vlm, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    samples = scene_samples(2, cells=4) + scene_samples(1, seed=1, cells=6)
    words = [["see", o.colour, o.shape] for s in samples for o in s.scene.objects[:1]]
    said = [[arms.Outcome(row, True, 1.0, 1.0) for row in words]]
    pruner = named_arm(vlm, samples, said, seeds=[3], anchor=2)[NAMED]
    found = arms.decode_arms(vlm, samples, {"named": pruner}, seeds=[3], max_new_tokens=5, batch_size=2)["named"][0]
    for number, (sample, outcome) in enumerate(zip(samples, found, strict=True)):
        seed = 3 * 1_000_003 + number
        trace = vpa.decode(vlm, sample.image, sample.question, pruner=pruner, seed=seed, max_new_tokens=5)
        expected = named_patches(sample.scene, words[number], trace.grid)
        assert expected.sum() == 4 and (trace.kept.values[1:] == expected).all() and trace.kept.values[0].all()
        assert outcome.tokens == trace.tokens and outcome.retention == pytest.approx(4 / len(trace.grid))


def test_a_row_that_no_set_is_given_for_is_refused():
    layout = random_batch(np.random.default_rng(0)).layout()
    with pytest.raises(ValueError, match=r"no set is given for the rows with seeds \[11"):
        NamedObjects(((10, 1, 2),)).start(layout)


def test_without_scenes_there_is_no_such_arm(vlm, pictures):
    own = [Sample("own", pictures[0], "what is this ?")]
    assert named_arm(vlm, own, [[arms.Outcome(["see"], True, 1.0, 1.0)]]) == {}
    assert "named objects" not in vpa.list_pruners()


def test_the_greedy_arm_is_that_of_the_dense_answers(vlm, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    samples, options = scene_samples(2, cells=4), {"max_new_tokens": 4, "batch_size": 2}
    dense = arms.decode_arms(vlm, samples, {"dense": None}, **options)["dense"]
    assert greedy_named_arm(vlm, samples, **options) == named_arm(vlm, samples, dense)
