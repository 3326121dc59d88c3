"""What every pruner must do, whoever wrote it: a new one is tested here without another edit."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import numpy as np
import pytest
from any_model import make_for_any

import visionpulse_analysis as vpa
from visionpulse_analysis.pruners import as_text

QUESTIONS = ["where is the red circle ?", "how many blue shapes ?"]
PRUNERS = {
    name: kind for name, kind in vpa.list_pruners().items() if kind.__module__.startswith("visionpulse_analysis")
}
# The setting at which a pruner leaves everything as it is, where that is not budget=1.
EVERYTHING = {
    "adaptvis": {"sharp": 1.0, "smooth": 1.0},
    "dyvte": {"first_layer": 8},
    "dyvte_steps": {"first_layer": 8},
    "keep_all": {},
    "lookm": {"heavy": 1.0},
    "mvw": {"tokens": 10_000},
    "pyramiddrop": {"ratio": 1.0},
    "shortv": {"layers": ()},
    "sparsevlm": {"shares": (1.0, 1.0, 1.0)},
    "st3": {"rate": 0.0, "decay": "none"},
    "visipruner": {"stages": ("middle", "deep"), "layer_threshold": -2.0},
    "vica": {"layers": tuple(range(8)), "frozen": False},
    "vtw": {"layer": 8},
    "yopo": {"window": None, "mlp_share": 1.0, "cut": 8},
}


def decode(vlm, pictures, pruner, **options):
    """Two rows of different lengths, the second one with two images."""
    images = [pictures[0], [pictures[0], pictures[0]]]
    return vpa.decode(vlm, images, QUESTIONS, pruner=pruner, max_new_tokens=4, **options)


def same(first, second, tolerance=0.0) -> None:
    """Raise unless two traces agree in everything that was recorded."""
    assert first.tokens == second.tokens
    for name in ("kept", "k", "k_per_layer"):
        assert np.array_equal(getattr(first, name).values, getattr(second, name).values), name
    assert np.abs(first.logprobs - second.logprobs).max() <= tolerance
    assert np.abs(first.mass.values - second.mass.values).max(initial=0) <= tolerance


@pytest.fixture(scope="module")
def dense(vlm, pictures):
    return decode(vlm, pictures, None)


@pytest.mark.parametrize("name", PRUNERS)
class TestEvery:
    def test_masked_equals_gathered_and_a_second_run_the_first(self, vlm, pictures, name):
        masked = decode(vlm, pictures, make_for_any(name))
        for again, gathered in zip(
            masked, decode(vlm, pictures, make_for_any(name), execution="gathered"), strict=True
        ):
            same(again, gathered, tolerance=1e-4)
            assert np.isfinite(again.logprobs).all() and np.isfinite(again.attention.values).all()
            kept, per_layer = again.kept.values, again.k_per_layer.values
            assert np.array_equal(kept.sum(axis=1), per_layer[:, -1]) and np.array_equal(
                again.k.values, per_layer[:, -1]
            )
            assert (np.diff(per_layer[0]) <= 0).all()  # prefill never brings a patch back
            assert not np.isnan(again.budget.values).any()
        for first, second in zip(masked, decode(vlm, pictures, make_for_any(name)), strict=True):
            same(first, second)

    def test_a_padded_batch_equals_its_rows(self, vlm, pictures, name):
        together = decode(vlm, pictures, make_for_any(name), seed=4)
        alone = vpa.decode(vlm, pictures[0], QUESTIONS[0], pruner=make_for_any(name), max_new_tokens=4, seed=4)
        same(together[0], alone, tolerance=1e-4)

    def test_it_comes_back_from_its_json_and_from_its_text(self, name):
        for setting in ({}, EVERYTHING.get(name, {})):
            pruner = vpa.make_pruner(name, **setting)
            assert vpa.make_pruner(**json.loads(json.dumps(pruner.to_dict()))) == pruner
            assert vpa.make_pruner(as_text(pruner)) == pruner
            assert name in pruner._repr_html_()

    def test_it_says_what_it_does_and_what_it_takes(self, name):
        kind = PRUNERS[name]
        words = " ".join(base.__doc__ or "" for base in kind.__mro__[:-2])
        assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
        for field in fields(kind):
            assert field.name in words, f"the docstring does not explain {field.name}"
        papers = re.findall(r"arXiv \d{4}\.\d{5}|NeurIPS 2025 workshop|of no paper", words)
        assert papers or name in ("keep_all", "random", "uniform", "last_step_only"), "the docstring names no paper"

    def test_it_changes_what_the_model_says_unless_it_keeps_all(self, vlm, pictures, dense, name):
        changed = [
            not np.array_equal(pruned.logprobs, plain.logprobs)
            for pruned, plain in zip(decode(vlm, pictures, make_for_any(name)), dense, strict=True)
        ]
        idle = {"keep_all", "mvw"}  # mvw is dense for its first 32 tokens
        assert any(changed) != (name in idle)


@pytest.mark.parametrize("name", PRUNERS)
def test_a_whole_budget_equals_dense_bit_for_bit(vlm, pictures, dense, name):
    setting = EVERYTHING.get(name, {"budget": 1.0})
    for execution in ("masked", "gathered"):
        for whole, plain in zip(
            decode(vlm, pictures, make_for_any(name, **setting), execution=execution), dense, strict=True
        ):
            assert whole.kept.values.all() and whole.tokens == plain.tokens
            assert np.array_equal(whole.logprobs, plain.logprobs)
            assert np.array_equal(whole.attention.values, plain.attention.values)


KEEPING = [
    "visipruner(stages=())",
    "visipruner(shallow_layers=0, layer_threshold=-2.0)",
    "lookm(budget=1.0, recent=0.0)",
    "lookm(heavy=0.0, recent=1.0, merge='none')",
    "fastv(layer=0, budget=1.0)",
    "fastv(budget=1.0, rope=False)",
    "dycoke(budget=1.0, unpruned_when_steady=False)",
    "zspaprune(budget=1.0, core=0.0, similarity='sum')",
    "fastv(budget=1.0) | visionpulse(budget=1.0)",
    "shortv(layers=()) | lookm(budget=1.0) | mvw(tokens=99)",
]


@pytest.mark.parametrize("text", KEEPING)
def test_other_settings_that_keep_everything_equal_dense_too(vlm, pictures, dense, text):
    for whole, plain in zip(decode(vlm, pictures, vpa.make_pruner(text)), dense, strict=True):
        assert whole.kept.values.all() and whole.tokens == plain.tokens
        assert np.array_equal(whole.logprobs, plain.logprobs)
        assert np.array_equal(whole.attention.values, plain.attention.values)


def test_hooks_are_removed_also_after_an_exception(vlm, pictures, monkeypatch):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())

    before = hooks()
    decode(vlm, pictures, vpa.make_pruner("divprune"))
    assert hooks() == before

    def fails(self, view, layout, k):
        assert hooks() > before
        raise KeyError("inside")

    monkeypatch.setattr(PRUNERS["divprune"], "keep", fails)
    with pytest.raises(KeyError, match="inside"):
        decode(vlm, pictures, vpa.make_pruner("divprune"))
    assert hooks() == before
