"""SeTok's clusters: the order of patches means nothing, controls have as many, and `generate` tells the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.pruners.setok import SeTok

CELLS = torch.tensor([(row, col) for row in range(6) for col in range(6)])
CONTROLS = ("peaks", "kmeans", "rectangles", "spread", "random")


@pytest.fixture(scope="module")
def points():
    """Four looks, one in each quarter, with a little noise: float32 [patch, width]."""
    rng = torch.Generator().manual_seed(0)
    looks, quarter = torch.randn(4, 16, generator=rng), (CELLS[:, 0] // 3) * 2 + CELLS[:, 1] // 3
    return looks[quarter] + 0.05 * torch.randn(36, 16, generator=rng)


def test_a_picture_of_four_looks_has_four_clusters(points):
    centres, owner = SeTok(0.5, place=0.0).clusters(points, CELLS)
    quarter = (CELLS[:, 0] // 3) * 2 + CELLS[:, 1] // 3
    assert len(centres) == 4 and len({*zip(owner.tolist(), quarter.tolist(), strict=True)}) == 4


def test_permuted_patches_give_the_same_clusters_permuted(points):
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    centres, owner = SeTok(0.3).clusters(points, CELLS)
    moved, moved_owner = SeTok(0.3).clusters(points[order], CELLS[order])
    assert set(order[moved].tolist()) == set(centres.tolist())
    assert torch.equal(order[moved[moved_owner]], centres[owner][order])


@pytest.mark.parametrize("by", CONTROLS)
def test_controls_have_as_many_clusters_each_with_its_own_centre(points, by):
    for threshold in (0.02, 0.1, 0.5):
        order = torch.arange(36.0).flip(0)
        peaks = SeTok(threshold).clusters(points, CELLS, order)
        count, (centres, owner) = len(peaks[0]), SeTok(threshold, by=by).clusters(points, CELLS, order)
        assert by != "random" or centres.tolist() == list(range(36 - count, 36))
        assert torch.equal(peaks[0], SeTok(threshold).clusters(points, CELLS)[0])
        assert len(centres.unique()) == count == len(owner.unique()) and len(owner) == 36
        assert torch.equal(owner[centres], torch.arange(count)) and (centres.diff() > 0).all()


def test_blocks_differ_by_a_patch_at_most_and_k_means_is_at_rest(points):
    for budget in (4 / 36, 7 / 36, 16 / 36):
        _, owner = SeTok(budget=budget, by="rectangles").clusters(points, CELLS)
        assert torch.bincount(owner).max() - torch.bincount(owner).min() <= 2
        centres, owner = SeTok(budget=budget, by="kmeans", place=0.0).clusters(points, CELLS)
        looks = points / points.square().mean().sqrt()
        means = torch.stack([looks[owner == one].mean(dim=0) for one in range(len(centres))])
        assert torch.equal(torch.cdist(looks, means).argmin(dim=1), owner)


def test_of_patches_that_are_alike_the_earlier_is_the_centre():
    looks = torch.eye(8)[[0, 0, 3, 3, 3]]
    centres, owner = SeTok(0.1, place=0.0, neighbours=0.2).clusters(looks, CELLS[:5])
    assert centres.tolist() == [0, 2] and owner.tolist() == [0, 0, 1, 1, 1]
    # Where no product exceeds the threshold, the highest are centres, as many as there are neighbours.
    assert SeTok(9.0, place=0.0, neighbours=0.2).clusters(looks, CELLS[:5])[0].tolist() == [0]


def test_generate_under_watch_says_what_decode_says(vlm, pictures):
    pruner, question = vpa.make_pruner("setok(threshold=0.3)"), "where is the red circle ?"
    trace = vpa.decode(vlm, pictures[0], question, pruner=pruner, max_new_tokens=4, sample=None)
    inputs = vlm.family.batch([vlm.prompt(pictures[0], question)], padding=0)
    grid = vlm.prompt(pictures[0], question).grid
    with vpa.watch(vlm.model, vlm.tokenizer, pruner=pruner, locate=lambda model, given: [grid]) as w:
        vlm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert w.traces[0].tokens == trace.tokens
    assert np.array_equal(w.traces[0].kept.values, trace.kept.values) and not trace.kept.values.all()
    assert w.traces[0].logprobs == pytest.approx(trace.logprobs, abs=1e-4)
