"""Decoding by masked diffusion: what is unmasked when, what is recorded of it, what is hidden from which step on."""

from __future__ import annotations

import numpy as np
import pytest
from slow_denoising import slow_denoise

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.denoising import denoise, mask_id
from visionpulse_analysis.metrics.flops import ModelShape

ASKED = "where is the red circle ?"


def pruner(name):
    return vpa.make_pruner(name)


@pytest.mark.parametrize(("canvas", "steps"), [(6, 6), (7, 3)])
def test_what_is_unmasked_and_recorded_is_that_of_the_slow_statement(vlm, pictures, canvas, steps):
    trace = denoise(vlm, pictures[0], ASKED, canvas=canvas, steps=steps)
    words, places, rows = slow_denoise(vlm, pictures[0], ASKED, canvas, steps, mask_id(vlm))
    assert trace.meta["denoising"]["places"] == places
    assert trace.text.split() == vlm.decoder(words).split("<|im_end|>")[0].split() + ["<|im_end|>"] * (
        "<|im_end|>" in vlm.decoder(words)
    )
    expected = np.array([[layer.numpy()[trace.grid.position] for layer in step] for step in rows])
    assert np.allclose(trace.attention.values, expected, atol=1e-3)  # kept as float16
    own = np.array([[layer[-canvas:].sum().item() for layer in step] for step in rows])
    assert np.allclose(trace.data["canvas_mass"].values, own, atol=1e-5)


@pytest.mark.parametrize("start", [0, 2])
def test_patches_are_hidden_from_a_step_on(vlm, pictures, start):
    half = pruner("divprune(budget=0.5)")
    trace = denoise(vlm, pictures[0], ASKED, canvas=6, pruner=half, start=start)
    dense = denoise(vlm, pictures[0], ASKED, canvas=6)
    kept = trace.kept.values[-1]
    _, places, rows = slow_denoise(vlm, pictures[0], ASKED, 6, 6, mask_id(vlm), start=start, kept=kept)
    assert trace.meta["denoising"]["places"] == places and 0 < kept.sum() < len(kept)
    expected = np.array([[layer.numpy()[trace.grid.position] for layer in step] for step in rows])
    assert np.allclose(trace.attention.values, expected, atol=1e-3) and trace.kept.values[:start].all()
    # The first word is predicted by the last row of the prompt, which was read once.
    after = [n for n in range(start, 6) if places[n] != [0]]
    assert not trace.attention.values[after][:, :, ~kept].any()
    assert np.array_equal(trace.attention.values[:start], dense.attention.values[:start])
    # What is chosen does not depend on when it is hidden: the prompt does not see the answer.
    assert np.array_equal(kept, denoise(vlm, pictures[0], ASKED, canvas=2, pruner=half).kept.values[-1])


def test_a_row_of_a_batch_is_what_it_is_alone(vlm, pictures):
    asked = [ASKED, "how many red shapes ?", "is the red circle left of the blue star ?"]
    together = denoise(vlm, pictures[:3], asked, canvas=5, pruner=pruner("fastv"), start=1, seed=[4, 5, 6])
    for number, trace in enumerate(together):
        alone = denoise(
            vlm, pictures[number], asked[number], canvas=5, pruner=pruner("fastv"), start=1, seed=4 + number
        )
        assert trace.meta["denoising"] == alone.meta["denoising"] and trace.text == alone.text
        assert np.allclose(trace.attention.values, alone.attention.values, atol=1e-3)
        assert np.array_equal(trace.kept.values, alone.kept.values)


def test_keeping_everything_is_dense(vlm, pictures):
    dense = denoise(vlm, pictures[0], ASKED, canvas=5)
    whole = denoise(vlm, pictures[0], ASKED, canvas=5, pruner=pruner("divprune(budget=1.0)"), start=2)
    assert np.array_equal(dense.attention.values, whole.attention.values) and dense.text == whole.text


def test_no_word_is_the_mask_itself(vlm, pictures):
    seen = []
    assert "<|unk|>" not in denoise(vlm, pictures[0], ASKED, canvas=9, steps=2, watch=seen.append).text
    assert all((step.logprobs[..., mask_id(vlm)] == -np.inf).all() for step in seen) and len(seen) == 2


def test_a_trace_is_one_as_any_other(vlm, pictures, tmp_path):
    trace = denoise(vlm, pictures[0], ASKED, canvas=4, steps=2, heads="all", layers=[1, 3])
    assert trace.attention.sizes["head"] == vlm.n_heads and trace.layers == [1, 3]
    trace.save(tmp_path / "one")
    again = vpa.Trace.open(tmp_path / "one")
    assert again.data_hash == trace.data_hash and again.meta["denoising"] == trace.meta["denoising"]
    assert [len(text.split()) for text in trace.tokens] == [2, 2]


def test_costs_are_those_of_reading_the_canvas_at_every_step(vlm, pictures):
    trace = denoise(vlm, pictures[0], ASKED, canvas=4, pruner=pruner("fastv(layer=1, budget=0.25)"), start=2)
    prompt, shape = vlm.prompt(pictures[0], ASKED), ModelShape.of(vlm.model.config, 4)
    n, patches = len(prompt.ids), len(prompt.grid)
    dense = shape.flops(4, 4, 4 * (n + 4))
    few = np.full(shape.layers, n + 4 - patches + round(patches / 4))
    few[0] = n + 4
    assert vpa.costs_of(trace).flops == pytest.approx([shape.flops(n, n, n * n) + dense, dense] + [
        shape.flops(4, 4, 4 * few)
    ] * 2)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"canvas": 0}, "canvas"),
        ({"canvas": 4, "steps": 5}, "steps"),
        ({"canvas": 4, "start": 5}, "start"),
        ({"mask_token": "<|nothing|>"}, "no token '<|nothing|>'"),
        ({"pruner": "visionpulse"}, "chooses at every decode step"),
        ({"pruner": "fastv | visionpulse"}, "chooses at every decode step"),
        ({"pruner": "shortv"}, "changes what pictures take part in"),
        ({"pruner": "visipruner", "start": 1}, "changes the states of the prompt"),
    ],
)
def test_what_cannot_be_done_is_refused(vlm, pictures, given, said):
    given = {**given, **({"pruner": pruner(given["pruner"])} if "pruner" in given else {})}
    with pytest.raises(ValueError, match=said):
        denoise(vlm, pictures[0], ASKED, **given)


def test_until_it_starts_nothing_is_merged_before_the_first_layer_either(vlm, pictures):
    dense = denoise(vlm, pictures[0], ASKED, canvas=3)
    later = denoise(vlm, pictures[0], ASKED, canvas=3, pruner=pruner("setok(budget=0.1)"), start=3)
    assert np.array_equal(dense.attention.values, later.attention.values) and later.kept.values.all()
    hidden = denoise(vlm, pictures[0], ASKED, canvas=3, pruner=pruner("setok(budget=0.1)"), start=2)
    assert hidden.kept.values.sum(axis=1).tolist()[2] == round(0.1 * len(hidden.grid))


def test_two_that_choose_in_prefill_are_followed(vlm, pictures):
    both = denoise(vlm, pictures[0], ASKED, canvas=3, pruner=pruner("divprune(budget=0.5) | vtw(layer=4)"), start=1)
    kept = both.k_per_layer.values
    assert (kept[0] == len(both.grid)).all() and (kept[1:, :4] == len(both.grid) // 2).all() and not kept[1:, 4:].any()
