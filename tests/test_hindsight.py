"""One set chosen in hindsight: what it keeps, stated a second time from the dense trace, wherever it runs."""

from __future__ import annotations

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.experiments import conditions as arms
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.pruners.baselines import Hindsight

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?", "is it left of the blue star ?"]
SAMPLINGS = pytest.mark.parametrize("sampling", [None, Sampling(temperature=2.0)], ids=["greedy", "sampled"])


def most_attended(trace, budget: float) -> frozenset[int]:
    """Mean of the dense rows after prefill, and the first k of their order."""
    mean = trace.attention.values[1:, 0].astype(np.float32).mean(axis=0)
    order = sorted(range(len(mean)), key=lambda patch: (-mean[patch], patch))
    return frozenset(order[: max(1, int(budget * len(mean) + 1e-9))])


@SAMPLINGS
def test_every_step_keeps_the_most_attended_patches_of_the_dense_trace(vlm, pictures, sampling):
    """Rows of several lengths and image counts, and more of them than fit: a batch is refilled on the way."""
    images = [pictures[0], [pictures[0], pictures[0]], pictures[0]]
    options = {"seed": 7, "sample": sampling, "max_new_tokens": 7}
    dense = vpa.decode(vlm, images, QUESTIONS, layers=5, **options)
    for execution in ("masked", "gathered"):
        pruned = vpa.decode(
            vlm, images, QUESTIONS, pruner=Hindsight(0.1, 5), execution=execution, batch_size=2, **options
        )
        for plain, trace in zip(dense, pruned, strict=True):
            assert {frozenset(np.flatnonzero(kept)) for kept in trace.kept.values[1:]} == {most_attended(plain, 0.1)}
            assert trace.kept.values[0].all() and trace.tokens[0] == plain.tokens[0]


@SAMPLINGS
def test_an_arm_is_what_decoding_alone_gives(vlm, tmp_path, monkeypatch, sampling):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    samples = scene_samples(2, cells=4) + scene_samples(1, seed=1, cells=6)
    pruners = {"hindsight": Hindsight(0.1), "twice as many": Hindsight(0.2), "fixed": vpa.make_pruner("static_random")}
    found = arms.decode_arms(vlm, samples, pruners, seeds=(0, 4), sample=sampling, max_new_tokens=8, batch_size=2)
    for name, pruner in pruners.items():
        for place, seed in enumerate((0, 4)):
            traces = vpa.decode(
                vlm,
                [one.image for one in samples],
                [one.question for one in samples],
                layers="none",
                pruner=pruner,
                sample=sampling,
                seed=[seed * 1_000_003 + i for i in range(len(samples))],
                max_new_tokens=8,
            )
            for outcome, trace in zip(found[name][place], traces, strict=True):
                assert outcome.tokens == trace.tokens and outcome.overlap == 1.0
                assert outcome.retention == pytest.approx(trace.kept.values[1:].mean(), rel=1e-12)


def test_the_dense_answers_of_a_trunk_are_found_once(vlm, tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    found = []
    plainly = arms.Trunk.lend
    monkeypatch.setattr(arms.Trunk, "lend", lambda self, batch: found.append(batch.options) or plainly(self, batch))
    pruners = {f"{budget}": Hindsight(budget) for budget in (0.1, 0.2, 0.4)}
    arms.decode_arms(vlm, scene_samples(2, cells=4), pruners, max_new_tokens=3)
    assert [options.pruner for options in found].count(None) == 1


def test_a_random_set_stays_the_same_and_a_fresh_one_does_not(vlm, pictures):
    options = {"layers": "none", "max_new_tokens": 6, "seed": 3}
    fixed, other, fresh = (
        vpa.decode(vlm, pictures[0], QUESTIONS[0], pruner=vpa.make_pruner(name, budget=0.2), **(options | own))
        for name, own in (("static_random", {}), ("static_random", {"seed": 4}), ("random", {}))
    )
    steps = [trace.kept.values[1:] for trace in (fixed, other, fresh)]
    assert (steps[0] == steps[0][0]).all() and (steps[0].sum(axis=1) == int(0.2 * steps[0].shape[1])).all()
    assert not np.array_equal(steps[0][0], steps[1][0])
    assert not (steps[2] == steps[2][0]).all()


def test_hindsight_outside_decoding(vlm):
    from slow_pruners import random_batch

    with pytest.raises(ValueError, match="use it through decode"):
        Hindsight().start(random_batch(np.random.default_rng(0)).layout())
