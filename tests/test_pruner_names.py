"""What pruners are called, which parameters they take, and which they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from slow_pruners import (
    LAYERS,
    VISIONPULSE,
    as_sets,
    random_batch,
    random_logits,
    run,
    slow_k,
)

import visionpulse_analysis as vpa
from visionpulse_analysis.pruners import (
    FixedShare,
    KeepAll,
    LastStepOnly,
    PrefillOnce,
    PyramidDrop,
    Random,
    Uniform,
    VisionPulse,
    parse,
)
from visionpulse_analysis.pruners import (
    shortv as freezing,
)
from visionpulse_analysis.pruners.base import KNOWN
from visionpulse_analysis.pruners.shortv import ShortV
from visionpulse_analysis.pruners.sparsevlm import SparseVLM


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (VisionPulse, {"temperature": 0}, "temperature must be above 0"),
        (VisionPulse, {"temperature": float("nan")}, "temperature must be a finite number"),
        (VisionPulse, {"temperature": float("inf")}, "finite"),
        (VisionPulse, {"budget_min": -0.1}, r"budget_min must be a share of the patches in \[0, 1\], got -0.1"),
        (VisionPulse, {"budget_min": False}, "budget_min must be a finite number"),
        (VisionPulse, {"budget_max": 1.01}, "budget_max must be a share"),
        (VisionPulse, {"budget_min": 0.2, "budget_max": 0.1}, "budget_min 0.2 is above budget_max 0.1"),
        (VisionPulse, {"budget": 5}, "budget must be a share"),
        (VisionPulse, {"anchor_layer": -1}, "anchor_layer must be a zero-based layer index"),
        (VisionPulse, {"anchor_layer": 2.0}, "anchor_layer must be a whole number or None"),
        (VisionPulse, {"granularity": "patch"}, "'token' or 'block', got 'patch'"),
        (VisionPulse, {"hysteresis": -0.1}, "hysteresis must be 0 or above"),
        (VisionPulse, {"hysteresis": float("inf")}, "hysteresis must be a finite number"),
        (VisionPulse, {"block_size": 0}, "block_size must be at least 1"),
        *(
            (kind, {"budget": value}, "budget must be a (share of the patches|finite number)")
            for kind in (Random, Uniform, PrefillOnce, LastStepOnly)
            for value in (0, -1, 1.5, float("nan"), "5", True)
        ),
        *((kind, {"anchor_layer": -2}, "zero-based") for kind in (Random, Uniform, PrefillOnce, LastStepOnly)),
    ],
)
def test_bad_parameters(kind, parameters, message):
    with pytest.raises(ValueError, match=message):
        kind(**parameters)


def test_an_anchor_beyond_the_model_is_refused_before_decoding():
    layout = random_batch(np.random.default_rng(0)).layout()
    for kind in (VisionPulse, Random, PrefillOnce):
        with pytest.raises(
            ValueError, match=f"anchor layer {LAYERS} is out of range: the model has layers 0 to {LAYERS - 1}"
        ):
            kind(anchor_layer=LAYERS).start(layout)


class TestNames:
    def test_rivals_have_the_lists_of_their_authors(self):
        frozen = {*range(17, 32), 0, 2, 3, 12}
        assert set(ShortV.published().layers) == frozen and len(frozen) == 19
        assert {name: len(ShortV.published(name).layers) for name in freezing.PUBLISHED} == {
            "llava-1.5-7b": 19,
            "llava-1.5-13b": 24,
            "llava-next-7b": 19,
            "llava-next-13b": 24,
        }
        assert SparseVLM.published() == SparseVLM()
        for tokens in (192, 128, 96, 64):  # means over 2, 4, 10 and 16 layers, as the authors count them
            first, second, third = (576 * share for share in SparseVLM.published(tokens).shares)
            assert (2 * 576 + 4 * first + 10 * second + 16 * third) / 32 == pytest.approx(tokens, rel=0.04)
        layout = random_batch(np.random.default_rng(0)).layout()
        listed = PyramidDrop(ratios=(0.5, 0.25, 0.125)).start(layout)
        assert listed.ratios == PyramidDrop().start(layout).ratios
        with pytest.raises(ValueError, match="give layers as well"):
            PyramidDrop(ratios=(0.5, 0.25, 0.125)).start(replace(layout, n_layers=2))

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: ShortV.published("qwen"), "llava-1.5-7b"),
            (lambda: SparseVLM.published(100), "192, 128, 96, 64"),
            (lambda: SparseVLM(bias=-1.0), "bias must be at least 0"),
            (lambda: PyramidDrop(ratios=(0.5, 0.25)), "3 falling ratios"),
            (lambda: PyramidDrop((2,), ratios=(1.5,)), "ratios"),
            (lambda: PyramidDrop((2, 4), ratios=(0.2, 0.5)), "2 falling ratios"),
        ],
    )
    def test_a_list_that_there_is_not_is_refused(self, make, said):
        with pytest.raises(ValueError, match=said):
            make()

    def test_presets_are_those_of_the_paper(self):
        five, ten = VisionPulse.five_percent(), VisionPulse.ten_percent(17)
        assert (five.temperature, five.budget_min, five.budget_max, five.anchor_layer) == (0.1, 0.01, 0.05, None)
        assert (ten.temperature, ten.budget_min, ten.budget_max, ten.anchor_layer) == (0.4, 0.05, 0.10, 17)

    def test_a_preset_stands_after_a_colon(self):
        made = vpa.make_pruner
        assert made("visionpulse:5") == VisionPulse.five_percent() == VisionPulse()
        assert made("visionpulse:10") == VisionPulse.ten_percent()
        block = made("visionpulse:block")
        assert block == VisionPulse.block() and (block.granularity, block.block_size) == ("block", 64)
        assert (block.temperature, block.budget_min, block.budget_max) == (0.4, 0.01, 0.05)
        assert made("visionpulse:10", anchor_layer=3) == VisionPulse.ten_percent(3)
        assert made("visionpulse:10(anchor_layer=3)") == made(" visionpulse : 10 ( anchor_layer = 3 ) ")
        assert made("visionpulse:10(temperature=0.2)").temperature == 0.2
        assert made("fastv(budget=0.2) | visionpulse:10") == made("fastv(budget=0.2)") | VisionPulse.ten_percent()
        for kind in vpa.list_pruners().values():
            for preset in kind.presets:
                assert isinstance(made(f"{kind.name}:{preset}"), kind)

    def test_published_settings_have_names_of_their_own(self):
        made = vpa.make_pruner
        assert made("shortv:llava-1.5-7b").layers == (0, 2, 3, 12, *range(17, 32))
        assert (made("vtw:llava-1.5-7b").layer, made("vtw:llava-1.5-7b-chat").layer) == (15, 16)
        assert made("sparsevlm:128") == SparseVLM.published(128) and made("sparsevlm:192") == SparseVLM()
        both = made("vtw:llava-1.5-13b | sparsevlm : 64 (recycled=0.0)")
        assert both == made("vtw(layer=20)") | replace(SparseVLM.published(64), recycled=0.0)
        assert made("sparsevlm:64", recycled=0.0) == replace(SparseVLM.published(64), recycled=0.0)
        with pytest.raises(ValueError, match=r"no preset 'llava-7b'; it has llava-1\.5-7b"):
            made("shortv:llava-7b")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("visionpulse:7", "pruner 'visionpulse' has no preset '7'; it has 5, 10, block"),
            ("random:10", "pruner 'random' has no preset '10'; it has none"),
            ("nothing:10", "no pruner 'nothing'; known: "),
            ("visionpulse:", "has no preset ''; it has 5"),
            ("visionpulse:10:5", "has no preset '10:5'"),
            ("visionpulse.ten", "a pruner is written name"),
        ],
    )
    def test_a_preset_that_is_none_is_refused(self, text, message):
        with pytest.raises(ValueError, match=message):
            vpa.make_pruner(text)

    def test_quoted_text_keeps_its_colons(self):
        assert parse("a(x='u:v', y=\"w:z\") | b:1") == [("a", {"x": "u:v", "y": "w:z"}), ("b:1", {})]

    def test_one_patch_is_kept_where_the_least_budget_is_none(self):
        batch = random_batch(np.random.default_rng(1))
        for granularity in ("token", "block"):
            pruner = VisionPulse(
                temperature=1e-3, budget_min=0.0, budget_max=1e-6, granularity=granularity, block_size=2
            )
            assert pruner.budget_min == 0
            made = run(pruner, batch.layout(), random_logits(np.random.default_rng(2), batch, 2))[0]
            if granularity == "token":
                assert [len(kept) for kept in as_sets(made["kept"])] == [1] * len(batch.places)
            assert (made["budget"] <= 1e-6).all() and made["kept"].any(dim=1).all()

    def test_every_pruner_is_listed_and_comes_back_from_its_dict(self):
        assert set(vpa.list_pruners()) >= {
            "keep_all",
            "last_step_only",
            "prefill_once",
            "random",
            "uniform",
            "visionpulse",
        }
        for pruner in [KeepAll(), Uniform(0.3, 2), *VISIONPULSE]:
            assert vpa.make_pruner(**pruner.to_dict()) == pruner

    def test_unknown_names_and_parameters(self):
        with pytest.raises(ValueError, match=r"no pruner 'fastest'; known: .*visionpulse"):
            vpa.make_pruner("fastest")
        with pytest.raises(ValueError, match="no parameter 'share'; it takes budget, anchor_layer"):
            vpa.make_pruner("uniform", share=0.1)
        with pytest.raises(ValueError, match="budget must be a share"):
            vpa.make_pruner("uniform", budget=2.0)

    def test_a_pruner_of_ones_own(self):
        def define():
            @dataclass(frozen=True)
            class First(FixedShare):
                """Keep the first patches."""

                name: ClassVar[str] = "first"

                def keep(self, view, layout, k):
                    return torch.arange(layout.patches.shape[1])[None] < k[:, None]

            return First

        try:
            old, new = define(), define()  # as when a notebook cell runs again
            assert vpa.list_pruners()["first"] is new is not old
            made = vpa.make_pruner("first", budget=0.5)
            batch = random_batch(np.random.default_rng(0))
            kept = run(made, batch.layout(), random_logits(np.random.default_rng(0), batch, 2))[0]["kept"]
            assert as_sets(kept) == [set(range(slow_k(0.5, len(places)))) for places in batch.places]
        finally:
            KNOWN.pop("first", None)

    def test_a_name_belongs_to_one_pruner(self):
        with pytest.raises(TypeError, match="'visionpulse', which is the name of visionpulse_analysis"):

            class Mine(VisionPulse):
                pass

        assert vpa.list_pruners()["visionpulse"] is VisionPulse
