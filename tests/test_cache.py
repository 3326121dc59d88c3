"""The growing cache holds what the library's own cache holds, without copying it at every step."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen3NextConfig
from transformers.cache_utils import DynamicLayer

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import cache
from visionpulse_analysis.attention.cache import GrowingLayer, grows_in_place, make_cache
from visionpulse_analysis.decoding import batch, run
from visionpulse_analysis.decoding.sampling import Sample

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?", "is the red star left of the blue cross ?"]


def states(generator, rows, length):
    return torch.randn(rows, 2, length, 4, generator=generator)


def pair(steps, rows=3, spare=5):
    """The library's layer and a growing one after the same updates: a prompt of 7, then single tokens."""
    generator = torch.Generator().manual_seed(0)
    library, growing = DynamicLayer(), GrowingLayer()
    for step in range(steps):
        keys, values = states(generator, rows, 7 if step == 0 else 1), states(generator, rows, 7 if step == 0 else 1)
        expected, found = library.update(keys, values), growing.update(keys, values)
        assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    return library, growing, generator


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    monkeypatch.setattr(cache, "SPARE", 5)


def assert_same(library, growing):
    assert growing.get_seq_length() == library.get_seq_length()
    assert growing.get_mask_sizes(1) == library.get_mask_sizes(1)
    assert torch.equal(growing.keys, library.keys) and torch.equal(growing.values, library.values)


def test_every_update_equals_that_of_the_librarys_layer():
    library, growing, _ = pair(steps=30)
    assert_same(library, growing)


def test_growing_writes_into_the_room_and_returns_views():
    _, growing, generator = pair(steps=1)
    seen = [growing.update(states(generator, 3, 1), states(generator, 3, 1))[0] for _ in range(12)]
    # 12 tokens of room after the prompt of 7, then 13 + 5, then 19 + 5: all updates of one room return views of it.
    assert len({keys.untyped_storage().data_ptr() for keys in seen}) == 3
    assert seen[0].untyped_storage().nbytes() == 3 * 2 * 12 * 4 * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.batch_select_indices(torch.tensor([2, 0])),
        lambda layer: layer.batch_select_indices(torch.tensor([0, 1, 2])),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.reorder_cache(torch.tensor([1, 1, 0])),
        lambda layer: layer.crop(-2),
        lambda layer: layer.reset(),
    ],
    ids=["drop", "same", "repeat", "reorder", "crop", "reset"],
)
def test_the_librarys_own_changes_are_noticed(change):
    library, growing, generator = pair(steps=4)
    untouched = copy.deepcopy(growing)
    for layer in (library, growing):
        change(layer)
    rows = 3 if library.keys is None else len(library.keys)
    for _ in range(9):
        keys, values = states(generator, rows, 1), states(generator, rows, 1)
        library.update(keys, values)
        growing.update(keys, values)
        assert_same(library, growing)
    assert untouched.get_seq_length() == 10


def test_a_copy_grows_by_itself():
    library, growing, generator = pair(steps=3)
    copied = copy.deepcopy(growing)
    with torch.inference_mode():
        copied.update(states(generator, 3, 1), states(generator, 3, 1))
    assert_same(library, growing)
    growing.update(*[states(generator, 3, 1)] * 2)
    assert not torch.equal(copied.keys, growing.keys)


@pytest.mark.parametrize("sample", [None, Sample(temperature=2.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("pruner", "execution"),
    [(None, "masked"), (vpa.VisionPulse(budget=0.1), "masked"), (vpa.VisionPulse(budget=0.1), "gathered")],
    ids=["dense", "masked", "gathered"],
)
def test_decoding_equals_that_with_the_librarys_cache(vlm, pictures, monkeypatch, sample, pruner, execution):
    """Rows of different lengths, one that ends early, more steps than the spare room."""
    free = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=3, sample=sample, layers="none")
    monkeypatch.setattr(run, "end_ids", lambda vlm: {int(trace.token_ids[2]) for trace in free[:2]})
    runs = []
    for make in (make_cache, lambda model: DynamicCache(config=model.config)):
        monkeypatch.setattr(batch, "make_cache", make)
        monkeypatch.setattr(run, "grows_in_place", lambda cache: True)
        runs.append(
            vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=20, sample=sample, pruner=pruner, execution=execution)
        )
    for growing, library in zip(*runs, strict=True):
        assert growing.tokens == library.tokens
        assert np.array_equal(growing.logprobs, library.logprobs)
        assert np.array_equal(growing.attention.values, library.attention.values)


class Model:
    def __init__(self, config, **generation):
        self.config = config
        self.generation_config = type("Generation", (), generation)()


NEXT = Qwen3NextConfig(num_hidden_layers=4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda vlm: Model(NEXT), "LinearAttention"),
        (
            lambda vlm: Model(vlm.model.config, cache_implementation="quantized", cache_config={"backend": "fp8"}),
            "quantised",
        ),
    ],
    ids=["hybrid", "quantised"],
)
def test_another_kind_of_cache_is_the_librarys_and_the_log_says_why(vlm, caplog, model, message):
    cache._explain.cache_clear()
    with caplog.at_level(logging.WARNING):
        made = make_cache(model(vlm))
        make_cache(model(vlm))
    assert not grows_in_place(made)
    assert not any(isinstance(layer, GrowingLayer) for layer in made.layers)
    assert len(caplog.records) == 1 and message in caplog.text and "the library's own cache" in caplog.text


def test_rows_of_another_cache_stay_until_the_last_has_ended(vlm, pictures, monkeypatch):
    """Such layers cannot drop rows: finished ones are decoded on, and what is recorded is the same."""
    free = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=12)
    monkeypatch.setattr(run, "end_ids", lambda vlm: {int(free[0].token_ids[2])})
    expected = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=12)
    library = DynamicCache(config=vlm.model.config)
    monkeypatch.setattr(batch, "make_cache", lambda model: library)
    found = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=12)
    assert len(library.layers[0].keys) == 3
    for a, b in zip(expected, found, strict=True):
        assert a.tokens == b.tokens and a.meta["finished"] == b.meta["finished"]
        assert np.abs(a.logprobs - b.logprobs).max() < 1e-5


def test_the_model_decodes_with_a_growing_cache(vlm):
    assert grows_in_place(make_cache(vlm.model))
