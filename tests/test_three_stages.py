"""The three stages: every measure against a slow statement of it, and sentences that follow the numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from slow_stages import Dense, Seen, SlowFrozen, SlowGone, SlowSkip, by_hand, kl

from visionpulse_analysis.decoding.calibration import FirstTokens
from visionpulse_analysis.decoding.interventions.kinds import HidePatches, SkipImage, UnderSelection
from visionpulse_analysis.decoding.interventions.passes import TeacherForced
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.shortv import ShortV, layer_contribution
from visionpulse_analysis.pruners.vtw import VTW, withdrawal_curve
from visionpulse_analysis.studies.three_stages.measure import (
    LayerWatch,
    ask,
    asked_hash,
    lens_words,
    logit_lens,
    shallow_layers,
    sink_value_ratio,
    three_stages,
)

CLOSE = {"rtol": 1e-3, "atol": 1e-5}  # log probabilities of float32 models, computed in another order


@pytest.fixture(scope="module")
def samples():
    return scene_samples(2, seed=3, cells=4)  # two tasks: questions of two lengths, so one row is padded


@pytest.fixture(scope="module")
def asked(vlm, samples):
    return ask(vlm, samples, max_new_tokens=4)


@pytest.fixture(scope="module")
def stages(vlm, asked):
    return three_stages(vlm, asked, width=3, fraction=0.1)


@pytest.fixture(scope="module")
def passages(vlm, asked):
    return TeacherForced(vlm, [one.passage for one in asked], [one.queries for one in asked])


@pytest.mark.parametrize(
    ("act", "rule"),
    [
        (SkipImage(layers=range(1, 4)), SlowSkip(range(1, 4))),
        (ShortV((2,)), SlowFrozen(2)),
        (VTW(3), SlowGone(3)),
        (HidePatches(layers=range(3, 8)), SlowGone(3)),
    ],
    ids=["skip", "frozen", "gone", "hidden"],
)
def test_what_acts_in_one_pass_equals_the_rule_by_hand(vlm, asked, passages, act, rule):
    read = passages.read(passages.under(act) if isinstance(act, Pruner) else act)
    dense = passages.read()
    for row, one in enumerate(asked):
        for place in range(2):
            assert np.allclose(read[row, place], by_hand(vlm, one, place, rule), **CLOSE)
            assert np.allclose(dense[row, place], by_hand(vlm, one, place, Dense()), **CLOSE)
    assert np.abs(read - dense).max() > 1e-3  # else nothing was tested


def test_the_step_asked_depends_on_the_image_most(vlm, samples, asked):
    for sample, one in zip(samples, asked, strict=True):
        assert one.sample is sample and one.passage.ids[: one.queries[0] + 1].tolist() == (
            vlm.prompt(sample.image, sample.question).ids.tolist()
        )
        everything = ask(vlm, [sample], max_new_tokens=4)[0]
        assert everything.step == one.step  # alone as in a batch
        found = []
        for step in range(4):
            answer = torch.tensor(vlm.tokenizer.convert_tokens_to_ids(_greedy(vlm, sample)[:step]), dtype=torch.int64)
            prompt = vlm.prompt(sample.image, sample.question)
            longer = replace(one, passage=prompt.answered(answer))
            found.append(kl(by_hand(vlm, longer, 1, SlowGone(0)), by_hand(vlm, longer, 1, Dense())))
        assert one.step == np.argmax(found) and one.effect == pytest.approx(max(found), rel=1e-2)


def _greedy(vlm, sample):
    """The first words that the model says, each from a forward of its own."""
    words = []
    for _ in range(4):
        answer = torch.tensor(vlm.tokenizer.convert_tokens_to_ids(words), dtype=torch.int64)
        prompt = vlm.prompt(sample.image, sample.question).answered(answer)
        inputs = vlm.to_device(vlm.family.batch([prompt], 0))
        with torch.inference_mode():
            logits = vlm.model(**inputs, position_ids=vlm.family.positions(vlm.model, inputs)).logits
        words.append(vlm.tokenizer.convert_ids_to_tokens(int(logits[0, -1].argmax())))
    return words


def test_what_is_watched_is_what_each_layer_does(vlm, asked, passages):
    watch = LayerWatch(passages.layout, passages.queries)
    passages.read(UnderSelection(watch))
    for row, one in enumerate(asked):
        seen = Seen()
        by_hand(vlm, one, 1, seen)
        for number, layer in enumerate(seen.layers):
            weights, values, at = layer.weights().double(), layer.values().double(), layer.at
            norms = layer.value[0][:, at].abs().sum(dim=(0, 2)).numpy()
            assert np.allclose(watch.norms[number][row], norms, rtol=1e-3)
            for place, query in enumerate(one.queries):
                mean = weights[:, query, at].mean(0).numpy()
                assert np.allclose(watch.weights[number][row, place], mean, rtol=1e-3, atol=1e-6)
                assert np.allclose(watch.states[number][row, place], layer.states[query], rtol=1e-3, atol=1e-4)
                output = torch.stack([weights[h, query] @ values[h] for h in range(len(values))]).flatten()
                parts = [(weights[:, query, j, None] * values[:, j]).flatten() for j in at]
                least = min(float(torch.cosine_similarity(output - c, output, dim=0)) for c in parts)
                assert watch.cosines[number][row, place] == pytest.approx(least, abs=1e-5)


def test_the_curves_are_these_divergences(vlm, asked, stages):
    one, row = asked[1], 1
    for place in range(2):
        dense = by_hand(vlm, one, place, Dense())
        frozen = by_hand(vlm, one, place, SlowFrozen(2))
        close = {"rel": 2e-2, "abs": 1e-6}
        assert stages.withdrawn[place, 3, row] == pytest.approx(
            kl(by_hand(vlm, one, place, SlowGone(3)), dense), **close
        )
        skipped = by_hand(vlm, one, place, SlowSkip(range(1, 4)))
        assert stages.window[place, 1, row] == pytest.approx(kl(skipped, dense), **close)
        assert stages.shallow[place, row] == pytest.approx(
            kl(by_hand(vlm, one, place, SlowSkip((0, 1))), dense), **close
        )
        assert stages.frozen[place, 2, row] == pytest.approx(kl(frozen, dense), **close)
        assert stages.frozen_reverse[place, 2, row] == pytest.approx(kl(dense, frozen), **close)
        seen = Seen()
        by_hand(vlm, one, place, seen)
        norm, head = vlm.model.model.language_model.norm, vlm.model.lm_head
        with torch.inference_mode():
            lens = torch.log_softmax(head(norm(seen.layers[5].states[-1])), -1).double().numpy()
        assert stages.lens[place, 5, row] == pytest.approx(kl(lens, dense), **close)
        assert stages.lens_right[place, 5, row] == (lens.argmax() == dense.argmax())
        layer = seen.layers[4]
        weights = layer.weights()[:, -1, layer.at].mean(0)
        norms = layer.value[0][:, layer.at].abs().sum(dim=(0, 2))
        six = sorted(range(64), key=lambda j: -float(weights[j]))[:6]  # 10 % of 64 patches
        assert stages.mass[place, 4, row] == pytest.approx(float(weights.sum()), rel=1e-3)
        assert stages.sink_ratio[place, 4, row] == pytest.approx(float(norms[six].mean() / norms.mean()), rel=1e-3)
    assert stages.window.shape == (2, 6, 2) and stages.n_shallow == 2
    assert [shallow_layers(n) for n in (28, 32, 36)] == [5, 6, 7]  # 6 of 32
    assert np.array_equal(stages.effect, stages.withdrawn[:, 0])
    assert (stages.lens[:, -1] == 0).all() and stages.lens_right[:, -1].all()


def test_the_end_of_the_prompt_is_where_calibration_looks(vlm, samples, stages):
    first = FirstTokens(vlm, [(one.image, one.question) for one in samples])
    close = {"rtol": 2e-2, "atol": 1e-6}
    assert np.allclose(stages.withdrawn[0].mean(axis=1), withdrawal_curve(first, 8), **close)
    both = np.stack([stages.frozen[0], stages.frozen_reverse[0]], axis=1).mean(axis=2)
    assert np.allclose(both, layer_contribution(first, 8), **close)


def test_batches_do_not_matter(vlm, asked, stages):
    alone = three_stages(vlm, asked, width=3, fraction=0.1, batch_size=1)
    for name in ("withdrawn", "window", "frozen", "cosine", "sink_ratio", "lens"):
        assert np.allclose(getattr(alone, name), getattr(stages, name), rtol=1e-2, atol=1e-5), name
    assert asked_hash(asked) != asked_hash(asked[:1])


def test_sinks_are_the_most_attended_patches():
    weights, norms = np.array([0.1, 0.5, 0.3, 0.1]), np.array([1.0, 2.0, 4.0, 1.0])
    assert sink_value_ratio(weights, norms, 0.25) == pytest.approx(1.0)
    assert sink_value_ratio(weights, norms, 0.5) == pytest.approx(1.5)
    assert sink_value_ratio(weights, norms, 1e-9) == pytest.approx(1.0)  # at least one
    assert np.isnan(sink_value_ratio(weights, 0 * norms, 0.5))


def test_the_lens_table_ends_with_what_is_said(vlm, asked):
    table = lens_words(vlm, asked[0])
    assert table.shape == (9, 2)
    said = (asked[0].answer[0], asked[0].answer[-1])
    assert [row.split(", ")[0] for row in table.loc["output"]] == [word.strip() for word in said]


def test_wrong_options_are_refused(vlm, asked):
    for options in ({"width": 0}, {"width": 9}, {"fraction": 0.0}, {"fraction": 1.5}):
        with pytest.raises(ValueError, match="width of 1 to 8 layers"):
            three_stages(vlm, asked, **options)
    with pytest.raises(ValueError, match="0 samples"):
        three_stages(vlm, [])
    bare = replace(vlm, model=type("Bare", (), {"get_decoder": lambda self: None})())
    with pytest.raises(ValueError, match="final norm"):
        logit_lens(bare, torch.zeros(1))
