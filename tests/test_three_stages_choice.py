"""VisiPruner's filter and exit layers at both queries, against its rule stated slowly."""

from dataclasses import replace

import numpy as np
import pytest
import slow_prefill as slow
from slow_visipruner import SlowVisiPruner

from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.pruners.visipruner import VisiPruner
from visionpulse_analysis.studies.three_stages import visipruner_layers as study
from visionpulse_analysis.studies.three_stages.measure import ask
from visionpulse_analysis.studies.three_stages.visipruner_layers import NONE, Chosen, choices

EARLY = VisiPruner(shallow_layers=0, layer_threshold=0.9999, token_threshold=0.2, exit_threshold=0.99, exit_after=1)
NEVER = VisiPruner(shallow_layers=1, layer_threshold=-1.0)
LATE = VisiPruner(shallow_layers=6, layer_threshold=1.0)


@pytest.fixture(scope="module")
def asked(vlm):
    return ask(vlm, scene_samples(3, seed=3, cells=4), max_new_tokens=4)


@pytest.mark.parametrize("pruner", [EARLY, NEVER, LATE], ids=["early", "never", "last layer"])
def test_the_layers_are_those_of_the_rule(vlm, asked, pruner):
    for place, chosen in enumerate(choices(vlm, asked, pruner, batch_size=2)):
        for row, one in enumerate(asked):
            answer = one.passage.ids[one.queries[0] + 1 :].tolist() if place else []
            words = vlm.tokenizer(one.sample.question, add_special_tokens=False).input_ids
            inputs = slow.inputs_of(vlm, one.sample.image, one.sample.question, answer, words)
            inputs = replace(inputs, prompt=len(inputs.states))  # the answer so far counts as prompt
            rule = SlowVisiPruner(pruner, 0)
            dense = slow.slow_forward(vlm, inputs, SlowVisiPruner(VisiPruner(stages=()), 0))[0]
            pruned, ran = slow.slow_forward(vlm, inputs, rule)[:2]
            counts = [len(patches) for patches in ran]
            found = NONE if rule.filter_layer is None else rule.filter_layer
            assert chosen.filter_layer[row] == found
            assert chosen.exit_layer[row] == (NONE if rule.exit_layer is None else rule.exit_layer)
            share = np.nan if found in (NONE, 7) else counts[found + 1] / 64
            assert chosen.kept[row] == pytest.approx(share, nan_ok=True)
            assert chosen.changed[row] == (int(pruned.argmax()) != int(dense.argmax()))


def test_what_is_tested_has_filters_and_exits(vlm, asked):
    at_prompt, at_step = choices(vlm, asked, EARLY)
    assert (at_prompt.filter_layer != NONE).all() and (at_step.exit_layer != NONE).any() and (at_step.kept < 0.9).any()
    assert (choices(vlm, asked, LATE)[0].filter_layer == 7).all()


def made():
    first = Chosen(
        8, np.array([3, NONE, 5, 3]), np.array([NONE] * 4), np.array([0.1, np.nan, 0.3, 0.2]), np.eye(4)[0] > 0
    )
    return [first, replace(first, exit_layer=np.array([6, 7, NONE, 7]))]


def test_means_are_over_the_samples_that_have_the_value():
    means = made()[0].means()
    assert means["has_filter_layer"].value == 0.75 and means["filter_layer"].value == pytest.approx(11 / 3)
    assert means["kept"].value == pytest.approx(0.2) and means["exit_layer"] is None
    assert means["changed"].value == 0.25
    many = [
        replace(one, **{name: np.tile(v, 4) for name, v in vars(one).items() if name != "n_layers"}) for one in made()
    ]
    table = study.choices_table(many)
    assert table.loc["mean exit layer"].iloc[1] == "none"
    assert table.loc["mean exit layer"].iloc[2].startswith("6.7 of 8 [")
    assert table.loc["patches that it leaves"].iloc[1].startswith("20.0 % [")
    assert study.choices_numbers(made())["end of the prompt"]["exit_layer"] is None


def test_the_histogram_counts_every_sample():
    many = [replace(one, **{k: np.tile(v, 6) for k, v in vars(one).items() if k != "n_layers"}) for one in made()]
    page = study.choices_figure(many)
    areas = [area.get_paths()[0] for area in page.axes[1].collections]
    heights = [[sum(area.contains_point((x, y + 0.5)) for y in range(30)) for x in range(9)] for area in areas]
    assert heights[0] == [0, 0, 0, 0, 0, 0, 0, 0, 24]  # no exit layer in any sample, at the end of the prompt
    assert heights[1] == [0, 0, 0, 0, 0, 0, 6, 12, 6]


def test_the_sentences_on_the_choice_follow_the_intervals():
    many = {"filter_layer": np.full(60, 3), "kept": np.full(60, 0.02)}
    never, always = np.zeros(60, bool), np.ones(60, bool)
    good = Chosen(8, exit_layer=np.full(60, 6), changed=never, **many)
    bad = Chosen(8, exit_layer=np.full(60, NONE), changed=always, **many)
    assert "next tokens) transfers." in study.choices_verdicts([bad, good]) and "most samples have one" in (
        study.choices_verdicts([bad, good])
    )
    text = study.choices_verdicts([good, bad])
    assert "with these thresholds" in text and "most samples have none" in text
    few = Chosen(8, np.full(4, 3), np.array([6, 6, NONE, NONE]), np.full(4, 0.02), np.zeros(4, bool))
    assert study.choices_verdicts([few, few]).count("cannot be decided") == 2
