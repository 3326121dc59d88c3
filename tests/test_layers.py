"""Layers and anchors: averages in the stated order, what matters found where it was put, sentences that follow."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.interventions.single_steps import Effect, SingleSteps, keep_exactly, keep_top
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.statistics import Estimate
from visionpulse_analysis.studies.layers import figures as layer_figures
from visionpulse_analysis.studies.layers import report as layer_report
from visionpulse_analysis.studies.layers.anchors import Anchors, compare_anchors, relevant_patches, squares
from visionpulse_analysis.studies.layers.measure import horizon, layer_maps
from visionpulse_analysis.testbed.scenes.questions import reason
from visionpulse_analysis.traces import create_trace

LEVEL = 1e-4  # nats: the fixture's random weights depend little on the image


@pytest.fixture(scope="module")
def samples():
    return scene_samples(3, seed=4, cells=4)


@pytest.fixture(scope="module")
def traces(vlm, samples):
    return vpa.decode(vlm, [s.image for s in samples], [s.question for s in samples], max_new_tokens=6)


@pytest.fixture(scope="module")
def anchors(vlm, traces):
    return compare_anchors(vlm, traces, [0, 3, 7], level=LEVEL, most_steps=3, n_resamples=50)


def interval(estimate, low=None, high=None):
    low, high = estimate - 0.01 if low is None else low, estimate + 0.01 if high is None else high
    return Estimate(estimate, low, high, 5, 50, 0.95, "made")


def made(attention, words=None):
    """A trace with this attention [step, layer, patch] on 2 x 2 patches."""
    steps, layers, _ = attention.shape
    return create_trace(
        attention=attention.astype(np.float16),
        mass=attention.sum(-1).astype(np.float32),
        tokens=words or ["see"] * steps,
        token_ids=np.zeros(steps, np.int64),
        logprobs=np.zeros(steps, np.float32),
        grid=PatchGrid.from_grid(np.arange(4), [2], [2], [(16, 16)]),
        layers=list(range(layers)),
        meta={"id": "made"},
    )


def test_similarity_is_averaged_within_samples_first():
    same = np.tile([0.5, 0.0, 0.0, 0.25], (2, 2, 1))  # two layers alike at two steps
    apart = np.tile([[0.5, 0, 0, 0], [0, 0.5, 0, 0]], (8, 1, 1))  # two layers with nothing in common at eight
    own = [Sample("a", None, "what ?"), Sample("b", None, "what ?")]
    maps = layer_maps([made(same), made(apart)], own)
    assert maps.similarity[0, 1] == pytest.approx(0.5)  # not 2 / 10
    assert maps.adjacent.value == pytest.approx(0.5)
    assert maps.mass_by_step.shape == (8, 2) and maps.mass_by_step[:3, 0] == pytest.approx([0.625, 0.625, 0.5])
    assert maps.mass[0].value == pytest.approx((2 * 0.75 + 8 * 0.5) / 10)
    assert maps.kinds == [] and len(layer_figures.mass_figure(maps).axes) == 2  # the map and its colour bar


def test_mass_by_kind_is_that_of_the_kind(samples, rng):
    truths = reason(samples[0].scene, samples[0].truth, rng)[:-1]  # without the end mark
    kinds = np.array([truth.kind for truth in truths])
    attention = np.arange(1, len(kinds) + 1)[:, None, None] * np.full((len(kinds), 2, 4), 0.001)
    maps = layer_maps([made(attention, [truth.word for truth in truths])], samples[:1])
    assert set(maps.kinds) == set(kinds)
    for kind, mass in zip(maps.kinds, maps.mass_by_kind, strict=True):
        assert np.allclose(mass, 0.004 * (1 + np.flatnonzero(kinds == kind)).mean(), rtol=1e-3)


def test_maps_refuse_what_does_not_fit(samples):
    one = made(np.full((2, 1, 4), 0.1))
    with pytest.raises(ValueError, match="compares layers, but this trace of 2 steps has recorded"):
        layer_maps([one], samples[:1])
    two, three = (made(np.full((2, layers, 4), 0.1)) for layers in (2, 3))
    with pytest.raises(ValueError, match="two or more layers"):
        layer_maps([two, three], samples[:2])
    with pytest.raises(ValueError, match="one trace per sample"):
        layer_maps([made(np.full((2, 2, 4), 0.1))], samples)
    with pytest.raises(ValueError, match="0 traces"):
        layer_maps([], [])


def test_squares_are_two_by_two_patches_of_one_image():
    grid = PatchGrid.from_grid(np.arange(16 + 6), [4, 2], [4, 3], [(32, 32), (16, 24)])
    number = squares(grid)
    assert sorted(np.bincount(number).tolist()) == [2, 4, 4, 4, 4, 4]  # an odd column makes a smaller one
    for index in range(number.max() + 1):
        inside = number == index
        assert len(set(grid.image[inside])) == 1
        assert np.ptp(grid.row[inside]) <= 1 and np.ptp(grid.col[inside]) <= 1


def test_the_relevant_set_is_the_square_whose_removal_moves_most():
    grid = PatchGrid.from_grid(np.arange(64), [8], [8], [(64, 64)])
    number = squares(grid)

    class Planted:
        """Step s depends on square 3 s, and weakly on square 1."""

        n_patches = 64

        def run(self, steps, layer, choose):
            assert layer == 0
            kept = choose(torch.zeros(len(steps), 64), np.arange(len(steps))).numpy()
            lost = [[not row[number == s].any() for s in (3 * step, 1)] for step, row in zip(steps, kept, strict=True)]
            return Effect(np.array(lost) @ [1.0, 0.1], np.array(lost)[:, 0], kept)

    planted: Any = Planted()
    steps = np.array([1, 4, 2])
    one = relevant_patches(planted, grid, steps, 0.07)  # 1 of 16 squares
    assert np.array_equal(one, number[None] == 3 * steps[:, None])
    two = relevant_patches(planted, grid, steps, 0.125)
    assert np.array_equal(two, one | (number[None] == 1))


def test_anchors_agree_with_a_slow_replay(vlm, traces, anchors):
    top, none, reads = [], [], []
    for trace in traces:
        replay = SingleSteps.of(vlm, trace)
        for step in replay.steps:
            nothing = keep_exactly(np.zeros((1, replay.n_patches), bool))
            reads.append(replay.run(np.array([step]), 0, nothing).kl[0] > LEVEL)
        steps = replay.steps[np.array(reads[-len(replay.steps) :])]
        chosen = steps[np.linspace(0, len(steps) - 1, 3).round().astype(int)] if len(steps) > 3 else steps
        for step in chosen:
            top.append(replay.run(np.array([step]), 3, keep_top(3)).kl[0])  # 5 % of 64 patches
            none.append(replay.run(np.array([step]), 3, keep_exactly(np.zeros((1, 64), bool))).changed[0])
    assert anchors.reading.value == pytest.approx(np.mean(reads))
    assert anchors.top_kl[1].value == pytest.approx(np.mean(top), rel=1e-3)
    assert anchors.none[1].value == pytest.approx(np.mean(none))
    assert anchors.overlap_null == pytest.approx(3 / 64)
    for top, random, gain in zip(anchors.top, anchors.random, anchors.gain, strict=True):
        assert gain.value == pytest.approx(random.value - top.value)
    assert all(1 / 64 <= i.value <= 1 for i in anchors.needed)


def test_anchors_refuse_what_cannot_be_compared(vlm, traces):
    with pytest.raises(ValueError, match="0 layers"):
        compare_anchors(vlm, traces, [])
    with pytest.raises(ValueError, match="no step reads the image"):
        compare_anchors(vlm, traces, [3], level=50.0)
    with pytest.raises(ValueError, match=r"fraction 1\.5"):
        compare_anchors(vlm, traces, [3], fraction=1.5)


def planted(anchors: Anchors, top, random, none) -> Anchors:
    curves = {"top": top, "none": none, "gain": [r - t for t, r in zip(top, random, strict=True)]}
    made = {name: [interval(v) for v in values] for name, values in curves.items()}
    return replace(anchors, default=3, random=[interval(v) for v in random], together=made, **made)


def test_the_verdict_follows_the_numbers(anchors):
    good = planted(anchors, [0.4, 0.02, 0.01], [0.7, 0.5, 0.01], [0.9, 0.6, 0.02])
    assert good.suitable() == [3] and good.unsuitable() == [0]  # layer 0 does harm
    assert good.undecided() == [7]  # perhaps no better than chance
    text = layer_report.verdict(good)
    assert "layer 3 would do: " in text and "Not so layer 0." in text and "samples: layer 7." in text
    assert "default anchor, layer 3, would do: there 2.0 % [1.0, 3.0]" in text and "From layer 7 on" in text
    assert "layer 3 here; it transfers" in layer_report.transfers(good)

    moved = planted(anchors, [0.02, 0.3, 0.2], [0.7, 0.5, 0.3], [0.9, 0.6, 0.4])
    text = layer_report.verdict(moved)
    assert moved.suitable() == [0] and "layer 3, would not do" in text and "At every layer more than 5 %" in text
    assert "does not transfer" in layer_report.transfers(moved) and "Here layer 0 would" in layer_report.transfers(
        moved
    )

    none = planted(anchors, [0.5, 0.4, 0.3], [0.5, 0.4, 0.3], [0.5, 0.4, 0.4])
    text = layer_report.verdict(none)
    assert "No layer is shown to do" in text and "fewest tokens change at layer 7, 30.0 % [29.0, 31.0]" in text
    assert "is shown at no layer" in layer_report.transfers(none)


def test_a_layer_whose_interval_holds_the_tolerance_is_undecided(anchors):
    three = planted(anchors, [0.055, 0.045, 0.1], [0.5, 0.5, 0.5], [0.9, 0.9, 0.045])
    assert (three.suitable(), three.undecided(), three.unsuitable()) == ([], [0, 3], [7])
    assert three.numbers()["suitable"] == [] and three.numbers()["undecided"] == [0, 3]
    text = layer_report.verdict(three)
    assert "Undecided with these samples: layers 0, 3." in text and "layer 3, is undecided" in text
    assert "From no layer on is it shown that no patch at all" in text  # 4.5 % [3.5, 5.5] at layer 7
    assert "may or may not transfer" in layer_report.transfers(three)
    nan = float("nan")
    none = [interval(0.0, nan, nan)] * 3
    unknown = replace(three, top=none, together={**three.together, "top": none})
    assert unknown.undecided() == [0, 3, 7] and "at layer 0, 0.0 %." in layer_report.verdict(unknown)


def test_from_a_layer_on_means_all_layers_above_it(anchors):
    three = [0.02, 0.02, 0.02], [0.5, 0.5, 0.5]
    assert "From layer 7 on even no patch" in layer_report.verdict(planted(anchors, *three, [0.01, 0.4, 0.01]))
    assert "From layer 0 on even no patch" in layer_report.verdict(planted(anchors, *three, [0.01, 0.01, 0.01]))
    assert "From no layer on" in layer_report.verdict(planted(anchors, *three, [0.01, 0.01, 0.4]))


def test_layers_are_picked_by_intervals_that_hold_at_all_of_them(anchors):
    """A layer that one interval of 95 % would admit may not be admitted among several."""
    good = planted(anchors, [0.4, 0.02, 0.01], [0.7, 0.5, 0.01], [0.9, 0.6, 0.02])
    wide = {**good.together, "top": [replace(one, high=one.high + 0.1) for one in good.top]}
    assert good.suitable() == [3] and replace(good, together=wide).suitable() == []
    for name in ("top", "gain", "none"):
        for narrow, together in zip(getattr(anchors, name), anchors.together[name], strict=True):
            assert together.confidence == pytest.approx(1 - 0.05 / 3) and together.value == narrow.value
            assert not together.low > narrow.low and not together.high < narrow.high


def test_the_papers_rule_is_tested_at_its_own_layer(anchors):
    good = planted(anchors, [0.4, 0.02, 0.3], [0.7, 0.5, 0.6], [0.9, 0.6, 0.6])
    text = layer_report.transfers(replace(good, default=7))
    assert "means layer 3 here; it transfers" in text and "default anchor, layer 7, would not do" in text
    text = layer_report.transfers(replace(good, n_layers=16, default=3))
    assert "means layer 7 here; it does not transfer" in text and "default anchor, layer 3, would do" in text
    assert "that layer was not tried" in layer_report.transfers(replace(good, n_layers=12))
    assert "also the model's default anchor" in layer_report.transfers(good)


def test_horizon_is_for_models_that_speak_the_scenes(vlm):
    curve = horizon(vlm, 2, cells=4)
    assert curve is not None and {len(values) for values in curve.values()} == {vlm.n_layers + 1}
    assert {(interval.n_clusters, interval.unit) for values in curve.values() for interval in values} == {(2, "scene")}

    other: Any = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: {"see": 0}))
    assert horizon(other) is None


def test_the_page_has_its_panels_and_the_table_its_rows(traces, samples, anchors):
    maps = layer_maps(traces, samples)
    table = layer_report.paper_table(maps, anchors)
    assert table.loc["anchor layer", "here"] == "3 of 8 by default; the middle: 3" and len(table) == 8
    top = anchors.top[1]
    bounds = "" if np.isnan(top.low) else f" [{100 * (1 - top.high):.1f}, {100 * (1 - top.low):.1f}]"
    unchanged = f"{100 * (1 - top.value):.1f} %{bounds} of image-dependent tokens"
    assert table.loc["tokens unchanged, 5 % chosen at the default anchor", "here"] == unchanged
    assert table.map(len).to_numpy().max() <= 50  # longer ones are cut off where a notebook shows them
    with_horizon = layer_figures.anchors_page(anchors, {"row": [interval(0.2, 0.1, 0.3)] * 9})
    without = layer_figures.anchors_page(anchors)
    assert [sum(ax.get_visible() for ax in page.axes) for page in (with_horizon, without)] == [4, 3]
    assert np.allclose(with_horizon.axes[0].lines[0].get_ydata(), [i.value for i in anchors.top])
    assert with_horizon.axes[3].collections[0].get_datalim(with_horizon.axes[3].transData).intervaly.tolist() == [
        0.1,
        0.3,
    ]
    layer_figures.similarity_figure(maps)
