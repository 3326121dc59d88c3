"""Step dependence on constructed traces: identities, and an independent slow computation."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_scene import NAMED, OBJECTS, SIDE, WORDS, random_traces, sample_of, trace_of

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.quickstart.figures import quickstart_page, step_page, strongest_step
from visionpulse_analysis.studies.step_dependence import figures as step_figures
from visionpulse_analysis.studies.step_dependence.measure import step_dependence
from visionpulse_analysis.studies.step_dependence.object_attention import object_attention
from visionpulse_analysis.studies.step_dependence.report import step_findings, step_numbers
from visionpulse_analysis.testbed.scenes.scene import Scene


def test_constant_attention_overlaps_fully_and_is_covered_by_the_prefill_set(rng):
    row = rng.dirichlet(np.full(SIDE**2, 0.3)) * 0.6
    traces = [trace_of(np.tile(row, (len(WORDS), 1, 1))) for _ in range(3)]
    study = step_dependence(traces, 2, fraction=0.1, max_lag=5)
    assert [i.value for i in study.lag_overlap] == [1] * 5
    assert {i.value for i in study.prefill_overlap} == {1}
    own = [i.value for i in study.own_coverage]
    assert own == [i.value for i in study.prefill_coverage] == pytest.approx([own[0]] * len(WORDS))
    assert study.half_mass_share.value == pytest.approx(0.5)
    assert (study.n_samples, study.n_steps, study.steps) == (3, 3 * len(WORDS), list(range(len(WORDS))))


def test_attention_inside_the_critical_set_is_covered_entirely():
    row = np.zeros(SIDE**2)
    row[:3] = 0.1  # top 5 % of 64 patches are 3
    study = step_dependence([trace_of(np.tile(row, (len(WORDS), 1, 1)))] * 2, 2)
    assert study.later_coverage.value == study.later_own.value == 1
    assert study.null_coverage == 3 / 64


def test_disjoint_sets_overlap_nowhere():
    attention = np.zeros((len(WORDS), 1, SIDE**2))
    for step in range(len(WORDS)):
        attention[step, 0, [2 * step, 2 * step + 1]] = 0.3
    study = step_dependence([trace_of(attention)] * 2, 2, fraction=2 / 64, max_lag=4)
    assert [i.value for i in study.lag_overlap] == [0] * 4
    assert study.prefill_overlap[0].value == study.prefill_coverage[0].value == 1
    assert study.later_overlap.value == study.later_coverage.value == 0
    assert study.later_own.value == 1


def test_random_attention_meets_the_null(rng):
    study = step_dependence(random_traces(rng, 40, layers=1), 2, fraction=0.1)
    assert study.later_overlap.low < study.null_overlap < study.later_overlap.high
    assert study.later_coverage.low < study.null_coverage < study.later_coverage.high


def test_everything_equals_a_slow_computation(rng):
    traces = [*random_traces(rng, 3), trace_of(rng.dirichlet(np.ones(64), (9, 2)) * 0.5, WORDS[:9])]
    study = step_dependence(traces, 5, fraction=0.1, text_below=0.4, max_lag=12)
    k, by_lag, covered, masses, by_word, own = 6, {}, [], [], {}, []
    for trace in traces:
        rows = trace.attention.values[:, 1].astype(float)
        tops = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in rows]
        for lag in range(1, 13):
            pairs = [len(a & b) / len(a | b) for a, b in zip(tops, tops[lag:], strict=False)]
            if pairs:
                by_lag.setdefault(lag, []).append(np.mean(pairs))
        covered += [rows[t, sorted(tops[0])].sum() / rows[t].sum() for t in range(1, len(rows))]
        own += [rows[t, sorted(tops[t])].sum() / rows[t].sum() for t in range(1, len(rows))]
        masses += trace.mass.values[:, 1].tolist()
        for word, mass in zip(trace.tokens, trace.mass.values[:, 1], strict=True):
            by_word.setdefault(word, []).append(mass)
    assert [i.value for i in study.lag_overlap] == pytest.approx([np.mean(by_lag[d]) for d in range(1, 13)])
    assert study.later_coverage.value == pytest.approx(np.mean(covered))
    assert study.later_own.value == pytest.approx(np.mean(own))
    assert study.mean_mass.value == pytest.approx(np.mean(masses))
    assert study.text_share.value == pytest.approx(np.mean(np.array(masses) < 0.4))
    assert {w: i.value for w, i in study.words.items()} == pytest.approx({w: np.mean(v) for w, v in by_word.items()})
    assert list(study.words) == sorted(study.words, key=lambda w: -np.mean(by_word[w]))
    assert len(study.steps) == len(WORDS)  # three of four samples are that long


def test_half_of_the_mass_in_one_step_counts_that_step(rng):
    attention = np.full((10, 1, SIDE**2), 1e-6)
    attention[4, 0] = 0.9 / 64
    study = step_dependence([trace_of(attention, WORDS[:10])] * 2, 2)
    assert study.half_mass_share.value == pytest.approx(0.05, rel=1e-2)  # half of one step of ten


def test_intervals_resample_samples_not_steps(rng):
    once = random_traces(rng, 6, layers=1)
    study, again = (step_dependence(traces, 2) for traces in (once, once[:1] * 6))
    assert study.mean_mass.n_clusters == 6
    assert np.isnan(again.mean_mass.low)  # six equal samples do not vary, though their steps do


def test_heads_are_averaged(rng):
    attention = rng.dirichlet(np.ones(SIDE**2), (len(WORDS), 1, 2)) * 0.5
    by_head = trace_of(attention.astype(np.float16), heads=[0, 3])
    mean = trace_of(attention.astype(np.float16).astype(np.float32).mean(2))
    a, b = (step_dependence([t] * 2, 2, fraction=0.2) for t in (by_head, mean))
    assert a.mean_mass.value == pytest.approx(b.mean_mass.value, rel=1e-3)
    assert a.later_own.value == pytest.approx(b.later_own.value, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: step_dependence([], 2), ValueError, "two steps or more; got 0"),
        (lambda t: step_dependence([trace_of(t.attention.values[:1], WORDS[:1])], 2), ValueError, "too short"),
        (lambda t: step_dependence([t], 3), IndexError, r"layer 3 was not recorded; recorded layers: \[2, 5\]"),
        (lambda t: object_attention([t], [], 2), ValueError, "1 traces and 0 samples"),
        (lambda t: object_attention([t], [sample_of()], 3), IndexError, "layer 3 was not recorded"),
    ],
)
def test_bad_input_is_one_clear_error(rng, call, error, message):
    with pytest.raises(error, match=message):
        call(random_traces(rng, 1)[0])


def test_numbers_are_json_and_stand_in_the_sentences(rng):
    traces, samples = random_traces(rng, 3), [sample_of(str(i)) for i in range(3)]
    study, truth = step_dependence(traces, 2), object_attention(traces, samples, 2)
    numbers = json.loads(json.dumps(step_numbers(study, truth), allow_nan=False))
    own, other = (next(iter(known.values())) for known in (truth.share, truth.other))
    below, above = replace(own, low=0.1, high=0.2), replace(own, low=0.3, high=0.4)
    together = {"row": (above, below), "shape": (above, replace(other, high=0.3))}
    told = replace(truth, together=together, other={"row": below, "shape": below})
    widths = [one.confidence for pair in truth.together.values() for one in pair]
    assert set(widths) == {1 - 0.05 / len(widths)}
    assert "than another object does at `row`; at `shape` that is not shown." in step_findings(study, told)
    text = step_findings(study, truth)
    assert f"{numbers['consecutive_overlap']['estimate']:.3f}" in text
    assert f"{Estimate.from_json(numbers['objects']['share_named']):.1%}" in text
    assert f"{Estimate.from_json(numbers['text_share']):.1%}" in text


def test_shown_steps_are_those_that_name_objects_with_the_most_mass():
    attention = np.full((len(WORDS), 1, SIDE**2), 0.1 / 64)
    attention[[2, 11]] *= 5  # one step of each mention
    attention[[0, 8]] *= 9  # and steps that name nothing
    trace = trace_of(attention)
    assert step_figures.steps_to_show(trace, sample_of(), 2, count=2) == [2, 11]
    assert step_figures.steps_to_show(trace, sample_of(), 2, count=1) == [2]
    assert all(NAMED[step] is not None for step in step_figures.steps_to_show(trace, sample_of(), 2, count=4))
    own = Sample("own", sample_of().image, "?")
    assert step_figures.steps_to_show(trace, own, 2, count=2) == [0, 8]
    assert (strongest_step(trace, sample_of(), 2), strongest_step(trace, own, 2)) == (2, 0)


def test_cells_are_outlined_where_the_object_is_drawn():
    scene = Scene(4, OBJECTS, seed=1)
    ((left, top, right, bottom),) = step_figures.cell_boxes(scene, [1])
    image = scene.render()[int(top) : int(bottom), int(left) : int(right)]
    assert image[8, 8].tolist() == [40, 80, 200]  # the middle of the blue cross
    assert step_figures.cell_boxes(None, []).shape == (0, 4)


@pytest.mark.parametrize("known", [True, False], ids=["scenes", "own images"])
def test_pages_are_drawn_with_and_without_truth(rng, tmp_path, known):
    traces = random_traces(rng, 3)
    samples = [sample_of(str(i)) if known else Sample(str(i), sample_of().image, "?") for i in range(3)]
    study, truth = step_dependence(traces, 2), object_attention(traces, samples, 2)
    page = step_figures.headline(traces[0], samples[0], study, truth)
    assert page.get_size_inches()[0] == figures.DOUBLE
    last = page.axes[-1].get_xlabel()
    assert last == ("share of image mass" if known else "visual attention mass")
    figures.save(page, "page", folder=tmp_path, numbers=step_numbers(study, truth))
    figures.save(quickstart_page(traces[0], samples[0], 2), "quickstart", folder=tmp_path)
    blackouts = step_page(traces[0], samples[0], 2, 3).axes[:2]
    assert [ax.get_title()[:8] for ax in blackouts] == ["the 50 %", "the 10 %"]
    clear = [(np.asarray(ax.images[-1].get_array())[..., 3] == 0).mean() for ax in blackouts]
    assert np.allclose(clear, [0.5, 0.1], atol=1 / SIDE**2)
    assert figures.read_provenance(tmp_path / "page.png")["numbers"]["n_samples"] == 3
