"""Each pruner against an independent slow statement of its rule, on random logits (slow_pruners.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_pruners import (
    LAYERS,
    VISIONPULSE,
    Batch,
    as_sets,
    random_batch,
    random_logits,
    row_logits,
    run,
    slow_blocks,
    slow_k,
    slow_tokens,
    slow_top,
    view_of,
)

from visionpulse_analysis.pruners import LastStepOnly, PrefillOnce, Random, Uniform, VisionPulse
from visionpulse_analysis.pruners.top_k import budget_to_k, top_k

SEEDS = range(6)
ANCHOR = LAYERS // 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4), st.data())
def test_top_k_keeps_exactly_k_and_resolves_ties_by_index(scores, data):
    k = [data.draw(st.integers(0, 7)) for _ in scores]
    for dtype in (torch.float32, torch.bfloat16):  # the way of a CPU, and that of a GPU
        kept = top_k(torch.tensor(scores, dtype=dtype), torch.tensor(k))
        assert as_sets(kept) == [slow_top(row, count) for row, count in zip(scores, k, strict=True)]


@given(st.integers(1, 1000), st.integers(1, 5000))
def test_the_budget_is_rounded_down_but_never_to_nothing(thousandths, n):
    budget = thousandths / 1000
    k = budget_to_k(torch.tensor([budget], dtype=torch.float64), torch.tensor([n]))
    assert k.item() == slow_k(budget, n) == max(1, thousandths * n // 1000)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pruner", VISIONPULSE, ids=repr)
def test_visionpulse_follows_its_rule(pruner, seed):
    rng = np.random.default_rng(seed)
    batch = random_batch(rng)
    layout, logits = batch.layout(), random_logits(rng, batch, steps=5)
    anchor = ANCHOR if pruner.anchor_layer is None else pruner.anchor_layer
    slow = slow_blocks if pruner.granularity == "block" else slow_tokens
    first_sparse = anchor + 1 if pruner.granularity == "block" else anchor
    previous = [
        slow(row_logits(logits[0][anchor], batch, row), places, pruner, set())[1]
        for row, places in enumerate(batch.places)
    ]
    for step, made in enumerate(run(pruner, layout, logits), start=1):
        expected = [
            slow(row_logits(logits[step][anchor], batch, row), places, pruner, previous[row])
            for row, places in enumerate(batch.places)
        ]
        assert as_sets(made["kept"]) == [kept for _, kept in expected]
        assert np.allclose(made["mass"].numpy(), [mass for mass, _ in expected], rtol=1e-5, atol=1e-7)
        for layer, seen in enumerate(made["seen"]):
            if layer >= first_sparse:
                assert as_sets(seen) == [kept for _, kept in expected]
            elif layer < anchor and pruner.reuse_previous:
                assert as_sets(seen) == previous
            else:
                assert seen is None
        previous = [kept for _, kept in expected]


@pytest.mark.parametrize("granularity", ["token", "block"])
def test_the_budget_stays_within_its_range(granularity):
    batch = Batch([np.arange(4, 4 + 96)], [120])
    pruner = VisionPulse(granularity=granularity, block_size=4, temperature=1.0, budget_min=0.25, budget_max=0.75)
    for boost, budget in ((-200.0, 0.25), (200.0, 0.75)):
        logits = random_logits(np.random.default_rng(0), batch, 2)
        logits[1][ANCHOR][:, :, 4:100] += boost
        made = run(pruner, batch.layout(), logits)[0]
        assert made["budget"].item() == budget and made["kept"].sum() == 96 * budget
        assert made["mass"].item() == (boost > 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Random, Uniform, PrefillOnce, LastStepOnly])
def test_baselines_follow_their_rules(kind, seed):
    rng = np.random.default_rng(seed)
    batch, budget, steps = random_batch(rng), float(rng.choice([0.01, 0.1, 0.29, 0.5, 1.0])), 4
    layout, logits = batch.layout(), random_logits(rng, batch, steps)
    made = run(kind(budget), layout, logits)
    ranked_at = {PrefillOnce: lambda step: 0, LastStepOnly: lambda step: step - 1}
    for step in range(1, steps):
        assert made[step - 1]["seen"][:ANCHOR] == [None] * ANCHOR
        assert all(seen is made[step - 1]["kept"] for seen in made[step - 1]["seen"][ANCHOR:])
        assert made[step - 1]["budget"].tolist() == [budget] * len(batch.places)
        for row, places in enumerate(batch.places):
            kept, n = as_sets(made[step - 1]["kept"])[row], len(places)
            k = slow_k(budget, n)
            assert len(kept) == k and max(kept) < n
            if kind is Uniform:
                assert kept == {int((i + 0.5) * n / k) for i in range(k)}
            if kind in ranked_at:
                at = row_logits(logits[ranked_at[kind](step)][ANCHOR], batch, row)
                assert kept == slow_top([sum(head[place] for head in at) for place in places], k)


def test_uniform_gaps_differ_by_one_at_most():
    batch = Batch([np.arange(2, 2 + 97)], [110])
    for k in range(1, 98):
        kept = sorted(
            as_sets(run(Uniform(k / 97), batch.layout(), random_logits(np.random.default_rng(0), batch, 2))[0]["kept"])[
                0
            ]
        )
        assert len(kept) == k
        gaps = np.diff(kept)
        assert k < 2 or gaps.max() - gaps.min() <= 1


def test_random_draws_depend_on_seed_and_step_only():
    rng = np.random.default_rng(0)
    batch = Batch([np.arange(3, 63)] * 3, [70] * 3)
    logits = random_logits(rng, batch, 4)
    made = [as_sets(step["kept"]) for step in run(Random(0.2), batch.layout(), logits)]
    others = [as_sets(step["kept"]) for step in run(Random(0.2), batch.layout(), random_logits(rng, batch, 4))]
    assert made == others
    different = {frozenset(kept) for step in made for kept in step}
    assert len(different) == 9
    same_seed = replace(batch.layout(), seeds=[10, 10, 11])
    first, second, third = as_sets(run(Random(0.2), same_seed, logits)[0]["kept"])
    assert first == second != third


@pytest.mark.parametrize(
    "pruner", [*VISIONPULSE, Random(0.2), Uniform(0.2), PrefillOnce(0.2), LastStepOnly(0.2)], ids=repr
)
def test_rows_that_finish_take_their_state_with_them(pruner):
    rng = np.random.default_rng(3)
    batch = random_batch(rng, rows=4)
    layout, logits = batch.layout(), random_logits(rng, batch, 6)
    whole = run(pruner, layout, logits)
    rows, selection = torch.tensor([1, 3]), pruner.start(layout)
    for step in range(len(logits)):
        if step == 3:
            selection.drop_rows(rows)
        now = [layer if step < 3 else layer[rows] for layer in logits[step]]
        views = [view_of(step, layer, now[layer], selection.layout) for layer in range(LAYERS)]
        for view in views:
            selection.observe_prefill(view) if step == 0 else selection.visible(view)
        if step >= 3:
            assert torch.equal(selection.kept, whole[step - 1]["kept"][rows])
            assert torch.equal(selection.budget, whole[step - 1]["budget"][rows])


@pytest.mark.parametrize(
    "pruner", [p for p in VISIONPULSE if p.granularity == "token"] + [PrefillOnce(0.2), LastStepOnly(0.2)], ids=repr
)
def test_permuted_patches_permute_the_kept_set(pruner):
    rng = np.random.default_rng(1)
    batch = random_batch(rng, rows=1)
    logits = [
        [layer + torch.rand(layer.shape) / 8 for layer in step] for step in random_logits(rng, batch, 4)
    ]  # no ties
    layout, order = batch.layout(), torch.from_numpy(rng.permutation(len(batch.places[0])))
    moved = replace(layout, places=layout.places[:, order])
    for made, again in zip(run(pruner, layout, logits), run(pruner, moved, logits), strict=True):
        assert torch.equal(again["kept"], made["kept"][:, order])


def test_an_image_without_a_whole_block_keeps_everything():
    batch = Batch([np.arange(3, 60)], [64])
    made = run(VisionPulse(granularity="block"), batch.layout(), random_logits(np.random.default_rng(0), batch, 2))
    assert made[0]["kept"].all() and made[0]["mass"].item() == 0
