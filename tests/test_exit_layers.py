"""Stages, exit layers and clusters: shares between kinds of token, exits and purity counted a second time, slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.studies.learned_selection import exits, semantic_tokens, stages


def test_shares_between_kinds_are_sums_over_the_eager_model_s_attention():
    scenes, [sample] = vpa.load("scenes"), scene_samples(1, cells=4)
    found = stages.measure_stages(scenes, [sample], max_new_tokens=6)
    trace = vpa.decode(scenes, sample.image, sample.question, max_new_tokens=6, sample=None, layers="none")
    prompt = scenes.prompt(sample.image, sample.question)
    whole, places = prompt.answered(torch.from_numpy(trace.token_ids.astype(np.int64))), prompt.grid.position
    scenes.model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            attentions = scenes.model(**scenes.family.batch([whole], 0), output_attentions=True).attentions
    finally:
        scenes.model.set_attn_implementation({"text_config": "sdpa"})
    ranges = (range(places[0]), places, range(places[-1] + 1, len(prompt.ids)), range(len(prompt.ids), len(whole.ids)))
    for layer, weights in enumerate(attentions):
        mean = weights[0].mean(dim=0).numpy()
        expected = [[mean[list(a)][:, list(b)].sum(axis=1).mean() for b in ranges] for a in ranges]
        assert found.shares[0, layer] == pytest.approx(np.array(expected), abs=1e-4)
    assert found.shares.sum(axis=3) == pytest.approx(1, abs=1e-4)


def told():
    free = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]], bool)
    said = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]], bool)
    return exits.Told(free, {"gates": said}, np.arange(5))


def test_exit_layers_are_the_first_without_the_image():
    one = told()
    assert one.exit_layer(None).tolist() == [3, 2, 1, 4, 2]
    assert one.exit_layer("gates").tolist() == [3, 1, 1, 4, 2]
    assert one.confusion("gates").tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert one.balanced_layer(one.exit_layer("gates")) == pytest.approx(3.5 / 4)
    # Leaving at one layer for all hits one of the oracle's four layers.
    assert one.balanced_layer(np.full(5, 2)) == pytest.approx(1 / 4)
    assert one.left("gates").tolist() == [0.4, 0.6, 0.8]


def test_purity_and_objects_alone_are_counted_one_by_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        of, owner = rng.integers(-1, 4, 24), np.unique(rng.integers(0, 7, 24), return_inverse=True)[1]
        of[:4] = range(4)
        pure = [sum(of[other] == of[at] for other in range(24) if owner[other] == owner[at]) * 2
                > sum(owner == owner[at]) for at in range(24) if of[at] >= 0]  # fmt: skip
        assert semantic_tokens.purity(owner, of) == pytest.approx(np.mean(pure))
        own = [not any(owner[a] == owner[b] for a in range(24) for b in range(24) if of[a] == one != of[b])
               for one in range(4)]  # fmt: skip
        assert semantic_tokens.alone(owner, of) == pytest.approx(np.mean(own))


def test_the_threshold_is_calibrated_by_the_number_of_tokens():
    scenes = vpa.load("scenes")
    pictured = [semantic_tokens.Pictured.of_picture(scenes, one) for one in scene_samples(3, cells=4)]
    for tokens in (4, 9):
        pruner = semantic_tokens.calibrated(pictured, tokens, 4 / 64)
        counts = [one.clusters(pruner).max() + 1 for one in pictured]
        assert abs(np.median(counts) - tokens) <= 1
    # What is clustered is what enters the language model when a picture is decoded.
    [sample] = scene_samples(1, cells=4)
    trace = vpa.decode(scenes, sample.image, sample.question, pruner=pruner, max_new_tokens=1, sample=None)
    centres, _ = pruner.clusters(pictured[0].states, pictured[0].cells)
    assert np.flatnonzero(trace.kept.values[0]).tolist() == centres.tolist()
