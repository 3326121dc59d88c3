"""Gathered attention: exact, blind to what was dropped, and with text left where it lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_caches import BATCHES, DIM, HEADS, KV_HEADS, cached, choice, many_images, mask_of

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import gathered as gathering
from visionpulse_analysis.attention import gathered as reading
from visionpulse_analysis.attention.gathered import VIEWS, Masked, Readings, TextColumns, product
from visionpulse_analysis.pruners import VisionPulse
from visionpulse_analysis.pruners.view import newest_logits


@pytest.fixture(params=BATCHES.values(), ids=BATCHES)
def batch(request, rng):
    return request.param(rng)


def slow_attention(query, key, value, visible):
    """Float64, row by row and head by head, over the visible keys only."""
    out = np.zeros((len(query), 1, HEADS, DIM))
    for row, head in np.ndindex(len(query), HEADS):
        seen = visible[row].numpy()
        keys, values = (t[row, head // (HEADS // KV_HEADS)].double().numpy()[seen] for t in (key, value))
        logits = keys @ query[row, head, 0].double().numpy() * DIM**-0.5
        weights = np.exp(logits - logits.max())
        out[row, 0, head] = weights / weights.sum() @ values
    return out


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_gathered_attention_is_that_over_the_visible_keys(batch, rng, steps):
    generator = torch.Generator().manual_seed(steps)
    query, key, value = cached(batch, steps, generator)
    layout, kept, mask = batch.layout(), choice(batch, rng), mask_of(batch, batch.width + steps)
    hidden = Readings(layout, "masked").of(kept, mask, key.shape[2])
    gathered = Readings(layout, "gathered").of(kept, mask, key.shape[2])
    output, weights = gathered.attend(query, key, value, DIM**-0.5)
    assert weights is not None
    assert np.abs(output.numpy() - slow_attention(query, key, value, hidden.visible)).max() < 1e-6
    for row, patches in enumerate(kept):
        named = gathered.patches[row, : int(patches.sum())].tolist()
        assert named == torch.nonzero(patches)[:, 0].tolist()
        assert (weights[row, :, len(named) : gathered.patches.shape[1]] == 0).all()


@pytest.mark.parametrize("shared", [0, 99], ids=["copied", "summed while read"])
def test_values_are_summed_the_same_in_both_ways(batch, rng, shared, monkeypatch):
    monkeypatch.setattr(gathering, "SHARED", shared)
    query, key, value = cached(batch, 3, torch.Generator().manual_seed(1))
    layout, kept, mask = batch.layout(), choice(batch, rng), mask_of(batch, batch.width + 3)
    visible = Readings(layout, "masked").of(kept, mask, key.shape[2]).visible
    gathered = Readings(layout, "gathered").of(kept, mask, key.shape[2])
    for states in (value, torch.randn_like(value), value.clone()):  # layers share a reading, not a memory layout
        output, _ = gathered.attend(query, key, states, DIM**-0.5)
        assert np.abs(output.numpy() - slow_attention(query, key, states, visible)).max() < 1e-6


def test_logits_that_the_choice_computed_are_used_instead_of_the_keys(batch, rng):
    query, key, value = cached(batch, 3, torch.Generator().manual_seed(2))
    layout, kept, mask = batch.layout(), choice(batch, rng), mask_of(batch, batch.width + 3)
    gathered = Readings(layout, "gathered").of(kept, mask, key.shape[2])
    expected = gathered.attend(query, key, value, DIM**-0.5)
    known = newest_logits(query, key, mask, DIM**-0.5)
    found = gathered.attend(query, torch.full_like(key, torch.nan), value, DIM**-0.5, known)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(expected, found, strict=True))


def test_nothing_of_a_dropped_patch_or_of_padding_is_read(batch, rng):
    query, key, value = cached(batch, 3, torch.Generator().manual_seed(0))
    layout, kept, mask = batch.layout(), choice(batch, rng), mask_of(batch, batch.width + 3)
    gathered = Readings(layout, "gathered").of(kept, mask, key.shape[2])
    expected, _ = gathered.attend(query, key, value, 1.0)
    read = torch.zeros(len(kept), key.shape[2], dtype=torch.bool)
    read.scatter_(1, gathered.index, True)
    for first, end in gathered.views:
        read[:, first:end] = True
    unread = ~read[:, None, :, None].expand_as(key)
    found, _ = gathered.attend(query, key.masked_fill(unread, torch.nan), value.masked_fill(unread, torch.nan), 1.0)
    assert torch.equal(expected, found)
    if len(kept) == 1:  # what one row does not need, another may
        dropped = layout.keys_of(~kept, key.shape[2])
        assert torch.equal(read, ~dropped & (True if mask is None else mask[:, 0, 0]))


def test_text_is_read_where_it_lies(rng):
    """Only the kept patches are copied; with many images the shortest stretches of text between them too."""
    few, many = BATCHES["alike"](rng), many_images(rng, 9)
    for batch, most in ((few, 0), (many, 6 * 4)):
        text = TextColumns.of(batch.layout())
        assert text.copied.shape[1] <= most
        assert len(text.views) <= VIEWS + 1 and text.views[-1][1] is None
        kept = choice(batch, rng)
        index = Readings(batch.layout(), "gathered").of(kept, None, batch.width + 50).index
        assert index.shape[1] == kept.sum(dim=1).max() + text.copied.shape[1]


def test_every_column_of_text_is_read_once_and_no_patch(batch):
    layout = batch.layout()
    text = TextColumns.of(layout)
    for row, (places, length) in enumerate(zip(batch.places, batch.lengths, strict=True)):
        start = batch.width - length
        own = set(range(start, batch.width)) - set((places + start).tolist())
        viewed = [c for a, b in text.views for c in range(a, b or batch.width) if text.own[row, c : c + 1].all()]
        found = viewed + text.copied[row][text.real[row]].tolist()
        assert len(found) == len(set(found)) and set(found) == own


def test_a_known_bound_replaces_asking_the_device(vlm, pictures, monkeypatch):
    """As on a GPU: every row is filled up to the largest number that it may keep."""
    questions = ["where is the red circle ?", "how many blue shapes ?", "what ?"]
    options = {"max_new_tokens": 8, "pruner": VisionPulse.ten_percent(), "execution": "gathered"}
    expected = vpa.decode(vlm, pictures, questions, **options)
    widths, gather = set(), TextColumns.gather

    def noted(self, kept, width, *given):
        widths.add((width, int(kept.sum(dim=1).min())))
        return gather(self, kept, width, *given)

    monkeypatch.setattr(reading, "NO_WAIT", set())
    monkeypatch.setattr(TextColumns, "gather", noted)
    found = vpa.decode(vlm, pictures, questions, **options)
    assert {width for width, _ in widths} == {25} and min(count for _, count in widths) < 25  # 10 % of 256
    for a, b in zip(expected, found, strict=True):
        assert a.tokens == b.tokens and np.array_equal(a.kept.values, b.kept.values)
        assert np.abs(a.logprobs - b.logprobs).max() < 1e-5
        assert np.abs(a.mass.values - b.mass.values).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_short_numbers_are_summed_in_float32(rng, dtype):
    a, b = (torch.from_numpy(rng.normal(size=shape)).to(dtype) for shape in ((2, 3, 4, 500), (2, 3, 500, 6)))
    exact = a.double() @ b.double()
    assert product(a, b).dtype == torch.float32
    assert (product(a, b) - exact).abs().max() < 1e-4 < (torch.matmul(a, b) - exact).abs().max()


def test_choices_that_are_the_same_object_are_worked_out_once(rng):
    batch = BATCHES["padded"](rng)
    kept, columns = choice(batch, rng), batch.width
    mask = mask_of(batch, columns)
    readings = Readings(batch.layout(), "masked")
    first = readings.of(kept, mask, columns)
    assert isinstance(first, Masked) and readings.of(kept, mask, columns) is first
    assert readings.of(kept.clone(), mask, columns) is not first
    assert readings.of(batch.layout().patches, mask, columns) is None
