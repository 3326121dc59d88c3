"""Fixed sets beside sets by step: stated a second time, on made-up traces, on a real replay, and in sentences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_arms import first, made_arm, made_arms
from made_scene import NAMED, OBJECTS, SIDE, WORDS, cell_patches, random_traces, sample_of, trace_of

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps, keep_exactly
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.studies.step_dependence import figures as step_figures
from visionpulse_analysis.studies.step_dependence import fixed_set_report as report
from visionpulse_analysis.studies.step_dependence.fixed_sets import (
    AFRESH,
    BEFORE,
    HINDSIGHT,
    ONCE,
    OWN,
    PREFILL,
    fixed_sets,
)
from visionpulse_analysis.studies.step_dependence.fixed_sets import NAMED as OBJECTS_NAMED
from visionpulse_analysis.studies.step_dependence.measure import step_dependence
from visionpulse_analysis.studies.step_dependence.report import step_findings, step_numbers

EVERY = [OWN, BEFORE, PREFILL, HINDSIGHT, OBJECTS_NAMED, AFRESH, ONCE]


def test_masses_and_named_objects_equal_a_slow_computation(rng):
    traces, k = random_traces(rng, 3, layers=1), 6
    study = fixed_sets(traces, [sample_of(str(i)) for i in range(3)], 2, fraction=0.1)
    mass, named = {name: [] for name in EVERY[:5]}, {name: [] for name in EVERY[:5]}
    for trace in traces:
        rows = trace.attention.values[:, 0].astype(float)
        tops = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in rows]
        mean = trace.attention.values[1:, 0].astype(np.float32).mean(axis=0)
        objects = {patch for index in (0, 1) for patch in cell_patches(OBJECTS[index])}
        for step in range(1, len(rows)):
            sets = dict(
                zip(
                    EVERY,
                    [tops[step], tops[step - 1], tops[0], set(np.argsort(-mean)[:k].tolist()), objects],
                    strict=False,
                )
            )
            for name, kept in sets.items():
                mass[name].append(rows[step, sorted(kept)].sum() / rows[step].sum())
                if NAMED[step] is not None:
                    named[name].append(set(cell_patches(OBJECTS[NAMED[step]])) <= kept)
    for name, values in mass.items():
        assert study.sets[name].mass.value == pytest.approx(np.mean(values), rel=1e-5), name
        assert study.sets[name].named.value == pytest.approx(np.mean(named[name])), name
        assert study.sets[name].unharmed is None
    assert list(study.sets) == EVERY and study.sets[OBJECTS_NAMED].named.value == 1
    assert study.sets[AFRESH].share == study.sets[ONCE].share == 6 / 64 and study.sets[OBJECTS_NAMED].share == 8 / 64
    assert list(study.worse) == ["named"] and study.n_needing == 0


def test_a_step_is_unharmed_where_the_replay_says_so(vlm, pictures):
    questions = ["where is the red circle ?", "how many blue shapes ?"]
    traces = vpa.decode(vlm, [pictures[0]] * 2, questions, layers=3, max_new_tokens=6)
    samples = [Sample(question, pictures[0], question) for question in questions]
    level = 1e-4
    study = fixed_sets(traces, samples, 3, vlm, fraction=0.1, level=level)
    good, same, whole = [], [], []
    for trace in traces:
        mean = trace.attention.values[1:, 0].astype(np.float32).mean(axis=0)
        kept = np.isin(np.arange(len(mean)), np.argsort(-mean, kind="stable")[: int(0.1 * len(mean))])
        replay = SingleSteps.of(vlm, trace)
        blind, effect = (
            replay.run(replay.steps, 3, keep_exactly(np.tile(one, (5, 1)))) for one in (np.zeros_like(kept), kept)
        )
        needs = blind.kl > level
        good += (effect.kl <= level)[needs].tolist()
        same += (~effect.changed)[needs].tolist()
        whole += [bool((effect.kl <= level)[needs].all())]
    one = study.sets[HINDSIGHT]
    assert (study.n_needing, study.n_steps) == (len(good), 10) and len(good)
    assert one.unharmed.value == pytest.approx(np.mean(good)) and one.same_word.value == pytest.approx(np.mean(same))
    assert one.whole.value == np.mean(whole) and one.named is None and OBJECTS_NAMED not in study.sets
    assert set(study.worse) == {"unharmed", "same_word"} and set(study.worse["unharmed"]) == {PREFILL, HINDSIGHT}
    everything = fixed_sets(traces, samples, 3, vlm, fraction=1.0, level=level)
    assert all(one.unharmed.value == one.same_word.value == 1 for one in everything.sets.values())


@pytest.mark.parametrize(
    ("decisions", "says"),
    [
        ({PREFILL: "falls", HINDSIGHT: "falls", OBJECTS_NAMED: "falls"}, "Here what matters depends on the step"),
        ({PREFILL: "falls", HINDSIGHT: "not shown"}, "Prefill is the wrong moment"),
        ({PREFILL: "falls", HINDSIGHT: "falls", OBJECTS_NAMED: "rises"}, "does worse, too"),
        ({PREFILL: "not shown", HINDSIGHT: "falls"}, "is not shown by this: prefill's (1) is not shown to do worse"),
        ({PREFILL: "rises", HINDSIGHT: "not shown"}, "no fixed set does worse"),
    ],
)
def test_what_follows_can_come_out_every_way(decisions, says):
    text = report.conclusion(decisions, dict.fromkeys(decisions, "1"))
    assert says in text
    assert ("Here what matters depends" in text) == (set(decisions.values()) == {"falls"})
    assert ("Prefill is the wrong moment" in text) == (
        decisions[PREFILL] == "falls" and set(decisions.values()) != {"falls"}
    )


def test_one_fixed_set_that_does_is_told_from_one_that_does_not(rng):
    """Two objects in turn, each attended to when it is named: prefill's set misses one, hindsight's holds both."""
    traces = []
    for _ in range(12):
        attention = rng.dirichlet(np.ones(SIDE**2), (len(WORDS), 1)) * 0.1
        for step, index in enumerate(NAMED):
            attention[step, 0, cell_patches(OBJECTS[0 if index is None else index])] += 0.1
        traces.append(trace_of(attention))
    study = fixed_sets(traces, [sample_of(str(i)) for i in range(12)], 2, fraction=8 / 64)
    decisions = {name: verdict.decision for name, verdict in study.worse["named"].items()}
    assert decisions == {PREFILL: "falls", HINDSIGHT: "not shown", OBJECTS_NAMED: "not shown"}
    numbers = json.loads(json.dumps(study.numbers(), allow_nan=False))
    assert "Prefill is the wrong moment" in report.about_sets(numbers) and "not tested" in report.about_sets(numbers)
    assert "By the named objects' patches: Prefill is the wrong moment" in report.conclusions(numbers)
    whole, truth = step_dependence(traces, 2), None
    assert step_numbers(whole, truth, study)["fixed"] == study.numbers() and step_numbers(whole, truth)["fixed"] is None
    assert report.about_sets(numbers) in step_findings(whole, truth, study)
    assert report.sets_table(study).loc[HINDSIGHT, "set"] == "one"
    assert [ax.get_xlabel() for ax in report.sets_page(study).axes] == [
        "image mass\non the set (%)",
        "object named\nkept whole (%)",
    ]
    page = step_figures.headline(traces[0], sample_of(), whole, truth, study)  # nothing was replayed
    assert any(ax.get_xlabel() == "step" for ax in page.axes)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"samples": []}, "3 traces and 0 samples"), ({"level": 0.0}, "level is a KL divergence in nats above 0")],
)
def test_bad_input_is_one_clear_error(rng, given, message):
    samples = given.pop("samples", [sample_of(str(i)) for i in range(3)])
    with pytest.raises(ValueError, match=message):
        fixed_sets(random_traces(rng, 3), samples, 2, **given)


@pytest.mark.parametrize(
    ("hindsight", "named", "says"),
    [(20, 20, "each does worse"), (40, 20, "Prefill is the wrong moment"), (40, 40, "named objects (0.0 points")],
)
def test_arms_are_compared_by_accuracy(hindsight, named, says):
    def arm(right):
        return made_arm(first(right, of=40), 4)

    right = {"VisionPulse 5 %": 40, "at prefill 5 %": 10, "hindsight 5 %": hindsight, "named": named}
    arms = made_arms({"dense": arm(40)} | {name: arm(count) for name, count in right.items()})
    fixed = {PREFILL: "at prefill 5 %", HINDSIGHT: "hindsight 5 %", OBJECTS_NAMED: "named"}
    assert says in report.about_arms(arms, "VisionPulse 5 %", fixed)
    without = {PREFILL: "another"}
    assert "is not tested: that takes known answers" in report.about_arms(arms, "VisionPulse 5 %", without)
