"""Two pruners at once, pruners as text, and pruners calibrated on samples."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.calibration import FirstTokens
from visionpulse_analysis.pruners import VTW, DivPrune, FastV, KeepAll, VisionPulse, as_text
from visionpulse_analysis.pruners.shortv import ShortV, layer_contribution
from visionpulse_analysis.pruners.vtw import MVW, withdrawal_curve

QUESTION = "where is the red circle ?"


def decode(vlm, pictures, pruner, **options):
    images = [pictures[0], [pictures[0], pictures[0]]]
    return vpa.decode(vlm, images, [QUESTION] * 2, pruner=pruner, max_new_tokens=5, **options)


class TestCombined:
    def test_the_second_chooses_among_what_the_first_left(self, vlm, pictures):
        first, second = DivPrune(0.25), VisionPulse(2, budget=0.1)
        for execution in ("masked", "gathered"):
            both = decode(vlm, pictures, first | second, execution=execution)
            for trace, alone in zip(both, decode(vlm, pictures, first), strict=True):
                n, left = len(trace.grid), alone.kept.values[0]
                assert np.array_equal(trace.kept.values[0], left)
                rows = trace.k_per_layer.values
                assert (rows[0] == left.sum()).all() and (rows[1:, :2] == left.sum()).all()
                assert (rows[1:, 2:] == int(0.1 * n)).all()
                assert not (trace.kept.values & ~left).any()
                assert (
                    trace.budget.values[1:] == pytest.approx(0.1) and not np.isnan(trace.pruner_mass.values[1:]).any()
                )

    def test_a_second_that_wants_more_than_is_left_keeps_all_of_it(self, vlm, pictures):
        for trace in decode(vlm, pictures, FastV(1, 0.1) | VisionPulse(3, budget=0.5)):
            assert (trace.kept.values == trace.kept.values[0]).all()
            assert trace.k.values[0] == round(0.1 * len(trace.grid))

    def test_keeping_all_beside_another_changes_nothing(self, vlm, pictures):
        for pruner in (FastV(budget=0.2), VisionPulse(budget=0.1), ShortV((2, 3))):
            plain = decode(vlm, pictures, pruner)
            for combined in (KeepAll() | pruner, pruner | KeepAll()):
                for a, b in zip(plain, decode(vlm, pictures, combined), strict=True):
                    assert np.array_equal(a.logprobs, b.logprobs) and np.array_equal(a.kept.values, b.kept.values)

    def test_order_within_prefill(self, vlm, pictures):
        """FastV ranks at layer 1 what is left there, so that together they keep its share of what DivPrune kept."""
        trace = decode(vlm, pictures, DivPrune(0.5) | FastV(2, 0.25) | VTW(6) | MVW(2))[0]
        assert trace.k_per_layer.values.tolist()[0] == [32, 32, 16, 16, 16, 16, 0, 0]
        assert (trace.k_per_layer.values[2:] == 0).all()
        # At one layer, the second does not spend its share on what the first has just dropped.
        trace = decode(vlm, pictures, DivPrune(0.5) | FastV(1, 0.25))[0]
        assert trace.k_per_layer.values.tolist()[0] == [32, *[16] * 7]

    def test_costs_of_both(self, vlm, pictures):
        together = vpa.costs_of(decode(vlm, pictures, ShortV((4,)) | DivPrune(0.25))[0])
        pruned = vpa.costs_of(decode(vlm, pictures, DivPrune(0.25))[0])
        assert together.flops[0] < pruned.flops[0] and together.flops[1] == pruned.flops[1]
        forgetful = decode(vlm, pictures, DivPrune(0.25) | MVW(1))[0]
        assert forgetful.meta["costs"]["forgets"]
        assert not decode(vlm, pictures, VisionPulse() | MVW(1))[0].meta["costs"]["forgets"]

    def test_text_and_dict_give_it_back(self):
        pruner = FastV(3, 0.1) | VisionPulse.ten_percent(4) | MVW(7)
        assert vpa.make_pruner(as_text(pruner)) == pruner == vpa.make_pruner(**pruner.to_dict())
        assert vpa.make_pruner("fastv(layer=3, budget=0.1) | keep_all") == FastV(3, 0.1) | KeepAll()
        with pytest.raises(TypeError):
            operator.or_(FastV(), 3)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fastv(", r"written name, name\(parameter=value\) or a \| b, got 'fastv\('"),
            ("fastv(0.5)", "is written"),
            ("fastv + visionpulse", "is written"),
            ("fastv(budget=open)", "is written"),
            ("fastv | fastest", "no pruner 'fastest'; known: .*visionpulse"),
            ("fastv(share=1) | mvw", "no parameter 'share'; it takes layer, budget"),
            ("fastv(budget=2.0)", "budget must be a share"),
        ],
    )
    def test_text_that_is_none(self, text, message):
        with pytest.raises(ValueError, match=message):
            vpa.make_pruner(text)

    def test_parameters_beside_a_text(self):
        with pytest.raises(ValueError, match="inside its brackets, got budget beside it"):
            vpa.make_pruner("fastv | mvw", budget=0.1)


def made_up(distributions):
    """First-token log probabilities by pruner: dense, and per layer of the one it is given."""

    def first_tokens(pruner):
        key = None if pruner is None else pruner.layer if isinstance(pruner, VTW) else pruner.layers[0]
        return torch.tensor(distributions[key], dtype=torch.float64).log()

    return first_tokens


class TestCalibration:
    # Two samples, two words; the dense distribution first. Zero probability must not make NaN.
    WORLD = {
        None: [[0.5, 0.5], [0.2, 0.8]],
        0: [[1.0, 0.0], [0.2, 0.8]],
        1: [[0.6, 0.4], [0.2, 0.8]],
        2: [[0.5, 0.5], [0.3, 0.7]],
        3: [[0.5, 0.5], [0.2, 0.8]],
    }  # fmt: skip

    def divergences(self, reverse=False):
        dense = np.array(self.WORLD[None])
        found = []
        for layer in range(4):
            p, q = np.array(self.WORLD[layer]), dense
            p, q = (q, p) if reverse else (p, q)
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = np.where(p == 0, 0, p * np.log(p / q))
            found.append(terms.sum(axis=1).mean())
        return np.array(found)

    def test_curves_are_divergences(self):
        curve = withdrawal_curve(made_up(self.WORLD), 4).numpy()
        both = layer_contribution(made_up(self.WORLD), 4).numpy()
        assert curve == pytest.approx(self.divergences()) == both[:, 0]
        assert both[:, 1] == pytest.approx(self.divergences(reverse=True))

    def test_vtw_takes_the_first_layer_below_the_threshold(self):
        curve = self.divergences()
        assert curve[1] > 0.01 > curve[3] and curve[2] > 0.01
        assert VTW.calibrated(made_up(self.WORLD), 4, threshold=0.01) == VTW(3)
        assert VTW.calibrated(made_up(self.WORLD), 4, threshold=1.0, first_layer=2) == VTW(2)
        with pytest.raises(ValueError, match="no layer from 1 on has KL <= -1"):
            VTW.calibrated(made_up(self.WORLD), 4, threshold=-1.0)

    def test_shortv_freezes_what_contributes_least(self):
        order = np.argsort(self.divergences(), kind="stable")
        for count in range(5):
            expected = ShortV(tuple(sorted(order[:count].tolist())))
            assert ShortV.calibrated(made_up(self.WORLD), 4, frozen=count) == expected
        other = ShortV.calibrated(made_up(self.WORLD), 4, frozen=3, direction="dense||frozen")
        assert other == ShortV((1, 2, 3))
        with pytest.raises(ValueError, match="direction must be one of"):
            ShortV.calibrated(made_up(self.WORLD), 4, direction="both")
        with pytest.raises(ValueError, match="frozen must be 0 to 4 layers, got 5"):
            ShortV.calibrated(made_up(self.WORLD), 4, frozen=5)

    def test_on_a_model(self, vlm, pictures):
        samples = [
            (pictures[0], QUESTION),
            (pictures[1], "how many blue shapes ?"),
            (pictures[0], "where is the star ?"),
        ]
        first = FirstTokens(vlm, samples, batch_size=2)
        for pruner in (None, VTW(3), ShortV((1,))):
            expected = []
            for image, question in samples:
                trace = vpa.decode(vlm, image, question, pruner=pruner, max_new_tokens=1)
                expected.append((trace.token_ids[0], trace.logprobs[0]))
            logprobs = first(pruner)
            assert logprobs.exp().sum(dim=1).numpy() == pytest.approx(1)
            for row, (token, logprob) in zip(logprobs, expected, strict=True):
                assert int(row.argmax()) == token and float(row.max()) == pytest.approx(logprob, abs=1e-4)
        curve = withdrawal_curve(first, vlm.n_layers)
        threshold = 1.001 * float(curve[5])  # batches of another size change the last bits
        found = vpa.calibrate(vlm, "vtw", samples, threshold=threshold)
        assert isinstance(found, VTW) and curve[found.layer] <= threshold
        assert (curve[1 : found.layer] > threshold).all()

    def test_what_cannot_be_calibrated(self, vlm, pictures):
        with pytest.raises(ValueError, match="fastv has nothing to calibrate"):
            vpa.calibrate(vlm, FastV, [(pictures[0], QUESTION)])
        with pytest.raises(ValueError, match="no pruner 'vtv'"):
            vpa.calibrate(vlm, "vtv", [(pictures[0], QUESTION)])
        with pytest.raises(ValueError, match="no samples"):
            vpa.calibrate(vlm, "vtw", [])
