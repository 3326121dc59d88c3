"""Patterns of computation: their values, what they cost, and that they are carried out inside `generate` too."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.metrics.flops import ModelShape, count_costs
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.pattern import ORDINARY, Pattern
from visionpulse_analysis.pruners.shortv import ShortV
from visionpulse_analysis.pruners.vica import ViCA
from visionpulse_analysis.pruners.yopo import YOPO
from visionpulse_analysis.studies.other_architectures.measure import at_share, kept_by

HEADS = tuple(tuple((layer + head) % 3 > 0 for head in range(4)) for layer in range(8))
QUESTION = "where is the red circle ?"


class TestValues:
    def test_it_comes_back_from_its_json_and_an_ordinary_one_says_nothing(self):
        for pattern in (ORDINARY, Pattern((3, 1), (2,), 5, HEADS, 0.5)):
            assert Pattern.of(json.loads(json.dumps(pattern.to_dict()))) == pattern
        assert ORDINARY.to_dict() == {} and Pattern.of(None) == ORDINARY

    def test_two_at_once_are_the_narrower_of_each(self):
        both = Pattern((1,), (2,), 7, HEADS) | Pattern((3, 1), (), 5, tuple(layer[::-1] for layer in HEADS), 0.5)
        assert both.frozen == (1, 3) and both.blind == (2,) and both.window == 5 and both.mlp_share == 0.5
        assert both.heads[1] == tuple(a and b for a, b in zip(HEADS[1], HEADS[1][::-1], strict=True))
        assert (ORDINARY | both) == both == (both | ORDINARY)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"window": 4}, "odd"),
            ({"mlp_share": 0.0}, "share of the neurons"),
            ({"frozen": (-1,)}, "frozen"),
            ({"heads": ((True,), (True, False))}, "as many heads"),
        ],
    )
    def test_what_cannot_be_one_is_refused(self, given, said):
        with pytest.raises(ValueError, match=said):
            Pattern(**given)

    @pytest.mark.parametrize(
        "pruner", [ViCA((0, 8)), ShortV((8,)), YOPO(cut=9), YOPO(heads=HEADS[:7]), YOPO(heads=((True,) * 5,) * 8)]
    )
    def test_a_model_with_other_layers_or_heads_refuses_it(self, vlm, pictures, pruner):
        last = YOPO(heads=((True,) * 4 + (False,),) * 8) if pruner.name == "yopo" and pruner.heads else pruner
        with pytest.raises(ValueError, match=r"layer|head"):
            vpa.decode(vlm, pictures[0], QUESTION, pruner=last, max_new_tokens=2)


@pytest.mark.parametrize(
    "text", ["vica(layers=(2, 5))", "yopo(window=3, cut=6)", "yopo(cut=4) | visionpulse(budget=0.2)"]
)
def test_inside_generate_it_is_what_decode_does(vlm, pictures, text):
    prompt = vlm.prompt(pictures[0], QUESTION)
    inputs, pruner = vlm.family.batch([prompt], padding=0), vpa.make_pruner(text)
    decoded = vpa.decode(vlm, pictures[0], QUESTION, pruner=pruner, max_new_tokens=4)
    with vpa.watch(vlm.model, vlm.tokenizer, pruner=pruner, locate=lambda *_: [prompt.grid]) as watching:
        vlm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    [trace] = watching.traces
    assert trace.tokens == decoded.tokens and trace.meta["costs"] == decoded.meta["costs"]
    assert np.abs(trace.attention.values - decoded.attention.values).max() < 1e-3
    assert np.array_equal(trace.k_per_layer.values, decoded.k_per_layer.values)


@pytest.mark.parametrize("asked", ["yopo", "setok", "setok(place=0, by='rectangles')", "fastv | setok(place=0.5)"])
def test_without_a_map_what_goes_by_places_is_refused_inside_generate(vlm, pictures, asked):
    inputs = vlm.family.batch([vlm.prompt(pictures[0], QUESTION)], padding=0)
    with pytest.raises(ValueError, match="no map"), vpa.watch(vlm.model, pruner=vpa.make_pruner(asked)):
        vlm.model.generate(**inputs, max_new_tokens=2)
    with vpa.watch(vlm.model, pruner=vpa.make_pruner("setok(place=0)")) as w:
        vlm.model.generate(**inputs, max_new_tokens=2)
    assert len(w.traces) == 1


class Blank(Pruner):
    """Zeros in place of what leaves a layer."""

    def rewrite(self, layer, states, run):
        return torch.zeros_like(states) if layer == 3 else None


def test_what_a_pruner_puts_behind_a_frozen_layer_is_put_there(vlm, pictures):
    alone, frozen = (
        vpa.decode(vlm, pictures[0], QUESTION, pruner=one, max_new_tokens=3)
        for one in (Blank(), Blank() | ShortV((3,)))
    )
    assert frozen.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert np.abs(frozen.attention.values - alone.attention.values).max() < 1e-3


@pytest.mark.parametrize("heads", [3, 5])
def test_heads_of_another_model_are_refused(vlm, pictures, heads):
    given = YOPO(heads=((False,) + (True,) * (heads - 1),) * 8)
    with pytest.raises(ValueError, match=f"lists {heads} heads, and layer 0 has 4"):
        vpa.decode(vlm, pictures[0], QUESTION, pruner=given, max_new_tokens=2)


def test_rivals_of_about_equal_cost_leave_what_is_counted_for_them(vlm, pictures):
    for rival in at_share(0.3, vlm.n_layers).values():
        trace = vpa.decode(vlm, pictures[0], QUESTION, pruner=rival, max_new_tokens=1)
        assert np.abs(kept_by(rival, len(trace.grid), vlm.n_layers) - trace.k_per_layer.values[0]).max() < 1


class TestCosts:
    shape = ModelShape(8, 2, 1, 4, 50, (16, 16), (0, 0))

    def count(self, **facts):
        return count_costs(self.shape, np.full((3, 2), 30), text=10, patches=30, **facts)

    def test_pictures_frozen_and_read_nowhere_cost_nothing(self):
        gone = count_costs(self.shape, np.zeros((3, 2), int), text=10, patches=30)
        nothing = self.count(frozen_layers=[0, 1], blind_layers=[0, 1])
        for name in ("flops", "kv_bytes_read", "kv_bytes_held"):
            assert np.array_equal(getattr(nothing, name), getattr(gone, name)), name

    def test_each_part_saves_its_own_term(self):
        whole, d, a, m = self.count().flops[0], 8, 8, 16
        assert whole - self.count(mlp_share=0.5).flops[0] == 2 * 6 * 30 * d * m * 0.5
        assert whole - self.count(neighbours=9.0).flops[0] == 2 * 4 * a * 30 * (30 - 9)
        heads = 30 * 4 * d * a / 2 + 4 * a * (30 * 40 / 2 + 10 * 30 / 4)
        assert whole - self.count(active_heads=[0.5, 1.0]).flops[0] == heads
        blind = self.count(blind_layers=[1])
        assert whole - blind.flops[0] == 4 * a * 10 * 30  # text reads nothing, and patches still one another
        assert self.count().flops[1] - blind.flops[1] == 4 * a * 30
