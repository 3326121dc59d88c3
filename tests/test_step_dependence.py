"""Step dependence on constructed traces: identities, and an independent slow computation."""

import json
from dataclasses import replace

import numpy as np
import pytest

from visionpulse_analysis import figures
from visionpulse_analysis.patches import PatchGrid
from visionpulse_analysis.studies import step_figures
from visionpulse_analysis.studies.findings import step_findings, step_numbers
from visionpulse_analysis.studies.object_attention import named_objects, object_attention
from visionpulse_analysis.studies.quickstart import quickstart_page, step_page, strongest_step
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.studies.step_dependence import step_dependence
from visionpulse_analysis.testbed.scenes import CELL, Scene, SceneObject
from visionpulse_analysis.traces import create_trace

SIDE = 8  # patches per side: a scene of 4 x 4 cells
OBJECTS = (SceneObject("red", "circle", 0, 2), SceneObject("blue", "cross", 2, 3), SceneObject("red", "star", 3, 0))
WORDS = "see red circle r0 c2 , no . see blue cross r2 c3 , yes . </think> r2 c3 <|im_end|>".split()
NAMED = [None, 0, 0, 0, 0, None, 0, None, None, 1, 1, 1, 1, None, 1, *[None] * 5]


def sample_of(name="scene", objects=OBJECTS):
    scene = Scene(4, objects, seed=1)
    return Sample(name, scene.render(), "where is the blue cross ?", scene)


def trace_of(attention, words=WORDS, heads=None):
    """A trace with the given attention [step, layer, (head), patch] on the image of `sample_of`."""
    attention = np.asarray(attention, dtype=np.float32)
    grid = PatchGrid.from_grid(range(SIDE**2), SIDE, SIDE, [(4 * CELL, 4 * CELL)])
    return create_trace(
        attention=attention,
        mass=attention.sum(-1),
        tokens=list(words),
        token_ids=np.arange(len(words)),
        logprobs=np.zeros(len(words)),
        grid=grid,
        layers=[2, 5][: attention.shape[1]],
        heads=heads,
        images=[sample_of().image],
        meta={"question": "where is the blue cross ?", "text": " ".join(words)},
    )


def cell_patches(o):
    """Patch indices of an object's cell, counted by hand: a cell is 2 x 2 patches."""
    return [SIDE * (2 * o.row + i) + 2 * o.col + j for i in (0, 1) for j in (0, 1)]


def known_truth(traces, samples, layer, **options):
    truth = object_attention(traces, samples, layer, **options)
    assert truth is not None
    return truth


def random_traces(rng, count=4, layers=2):
    return [
        trace_of(rng.dirichlet(np.full(SIDE**2, 0.3), (len(WORDS), layers)) * rng.uniform(0.1, 0.9, (len(WORDS), 1, 1)))
        for _ in range(count)
    ]


def test_constant_attention_overlaps_fully_and_is_covered_by_the_prefill_set(rng):
    row = rng.dirichlet(np.full(SIDE**2, 0.3)) * 0.6
    traces = [trace_of(np.tile(row, (len(WORDS), 1, 1))) for _ in range(3)]
    study = step_dependence(traces, 2, fraction=0.1, max_lag=5)
    assert [i.estimate for i in study.lag_overlap] == [1] * 5
    assert {i.estimate for i in study.prefill_overlap} == {1}
    own = [i.estimate for i in study.own_coverage]
    assert own == [i.estimate for i in study.prefill_coverage] == pytest.approx([own[0]] * len(WORDS))
    assert study.half_mass_share.estimate == pytest.approx(0.5)
    assert (study.n_samples, study.n_steps, study.steps) == (3, 3 * len(WORDS), list(range(len(WORDS))))


def test_attention_inside_the_critical_set_is_covered_entirely():
    row = np.zeros(SIDE**2)
    row[:3] = 0.1  # top 5 % of 64 patches are 3
    study = step_dependence([trace_of(np.tile(row, (len(WORDS), 1, 1)))] * 2, 2)
    assert study.later_coverage.estimate == study.later_own.estimate == 1
    assert study.null_coverage == 3 / 64


def test_disjoint_sets_overlap_nowhere():
    attention = np.zeros((len(WORDS), 1, SIDE**2))
    for step in range(len(WORDS)):
        attention[step, 0, [2 * step, 2 * step + 1]] = 0.3
    study = step_dependence([trace_of(attention)] * 2, 2, fraction=2 / 64, max_lag=4)
    assert [i.estimate for i in study.lag_overlap] == [0] * 4
    assert study.prefill_overlap[0].estimate == study.prefill_coverage[0].estimate == 1
    assert study.later_overlap.estimate == study.later_coverage.estimate == 0
    assert study.later_own.estimate == 1


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
    assert [i.estimate for i in study.lag_overlap] == pytest.approx([np.mean(by_lag[d]) for d in range(1, 13)])
    assert study.later_coverage.estimate == pytest.approx(np.mean(covered))
    assert study.later_own.estimate == pytest.approx(np.mean(own))
    assert study.mean_mass.estimate == pytest.approx(np.mean(masses))
    assert study.text_share.estimate == pytest.approx(np.mean(np.array(masses) < 0.4))
    assert {w: i.estimate for w, i in study.words.items()} == pytest.approx({w: np.mean(v) for w, v in by_word.items()})
    assert list(study.words) == sorted(study.words, key=lambda w: -np.mean(by_word[w]))
    assert len(study.steps) == len(WORDS)  # three of four samples are that long


def test_half_of_the_mass_in_one_step_counts_that_step(rng):
    attention = np.full((10, 1, SIDE**2), 1e-6)
    attention[4, 0] = 0.9 / 64
    study = step_dependence([trace_of(attention, WORDS[:10])] * 2, 2)
    assert study.half_mass_share.estimate == pytest.approx(0.05, rel=1e-2)  # half of one step of ten


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
    assert a.mean_mass.estimate == pytest.approx(b.mean_mass.estimate, rel=1e-3)
    assert a.later_own.estimate == pytest.approx(b.later_own.estimate, rel=1e-2)


def test_attention_on_the_named_object_is_all_on_it():
    attention = np.full((len(WORDS), 2, SIDE**2), 0.5 / 64)
    for step, index in enumerate(NAMED):
        if index is not None:
            attention[step, 0] = 0
            attention[step, 0, cell_patches(OBJECTS[index])] = 0.2
    samples = [sample_of("a"), sample_of("b")]
    truth = known_truth([trace_of(attention)] * 2, samples, 2)
    assert list(truth.share) == ["colour", "shape", "row", "column", "verdict"]
    assert {i.estimate for i in truth.share.values()} == {i.estimate for i in truth.hit.values()} == {1}
    assert truth.share_named.estimate == 1
    assert truth.other_named is not None and truth.other_named.estimate == 0
    assert truth.chance == 4 / 64
    # The second layer is even: chance, at every kind.
    assert truth.by_layer == pytest.approx(np.tile([1, 4 / 64], (5, 1)))
    assert truth.unknown == 0
    assert truth.mass["template"].estimate == pytest.approx(0.5, rel=1e-2)


def test_truth_equals_a_slow_computation(rng):
    traces, samples = random_traces(rng, 3), [sample_of(str(i)) for i in range(3)]
    truth = known_truth(traces, samples, 5, text_below=0.4)
    share, other, hit = [], [], []
    for trace in traces:
        for row, index in zip(trace.attention.values[:, 1].astype(float), NAMED, strict=True):
            if index is not None:
                on = [row[cell_patches(o)].sum() / row.sum() for o in OBJECTS]
                share.append(on[index])
                other.append((sum(on) - on[index]) / 2)
                hit.append(row.argmax() in cell_patches(OBJECTS[index]))
    assert truth.share_named.estimate == pytest.approx(np.mean(share))
    assert truth.other_named is not None and truth.other_named.estimate == pytest.approx(np.mean(other))
    assert truth.hit_named.estimate == pytest.approx(np.mean(hit))
    shapes = [t.attention.values[i, 0].astype(float) for t in traces for i in (2, 10)]
    cells = [cell_patches(OBJECTS[i]) for _ in traces for i in (0, 1)]
    expected = np.mean([row[c].sum() / row.sum() for row, c in zip(shapes, cells, strict=True)])
    assert truth.by_layer[list(truth.share).index("shape"), 0] == pytest.approx(expected)
    assert truth.text_share["row"].estimate == np.mean([t.mass.values[i, 1] < 0.4 for t in traces for i in (3, 11)])


def test_objects_that_are_not_in_the_scene_are_left_out_and_counted(rng):
    without = sample_of("without", OBJECTS[::2])
    trace = trace_of(rng.dirichlet(np.ones(64), (len(WORDS), 1)))
    assert named_objects(trace, without) == [0 if index == 0 else None for index in NAMED]
    assert known_truth([trace], [without], 2).unknown == pytest.approx(4 / 9)  # 5 of the circle, 4 of the cross


def test_scenes_of_a_single_object_have_no_other_to_compare_with(rng):
    single, words = OBJECTS[1:2], "see blue cross r2 c3 , yes . </think> r2 c3 <|im_end|>".split()
    traces = [trace_of(rng.dirichlet(np.ones(64), (len(words), 1)) * 0.5, words) for _ in range(2)]
    samples = [sample_of(str(i), single) for i in range(2)]
    study, truth = step_dependence(traces, 2), known_truth(traces, samples, 2)
    assert truth.other == {} and truth.other_named is None
    assert list(truth.share) == ["colour", "shape", "row", "column", "verdict"]
    assert json.loads(json.dumps(truth.numbers(), allow_nan=False))["other_named"] is None
    assert "of its image mass lies on that object (6.2% if spread evenly)" in step_findings(study, truth)
    page = step_figures.headline(traces[0], samples[0], study, truth)
    assert "an object not named" not in page.axes[-1].get_legend_handles_labels()[1]


def test_a_kind_that_only_single_objects_have_gets_no_bar(rng):
    """The verdict is said of the lonely cross only; the other kinds are compared with the second object."""
    pair = random_traces(rng, 1)[0]
    words = [word if step != 6 and step != 14 else "." for step, word in enumerate(WORDS)]
    lonely = "see blue cross r2 c3 , yes .".split()
    traces = [trace_of(pair.attention.values, words), trace_of(rng.dirichlet(np.ones(64), (8, 2)) * 0.5, lonely)]
    truth = known_truth(traces, [sample_of("pair"), sample_of("lonely", OBJECTS[1:2])], 2)
    assert "verdict" in truth.share and set(truth.share) - set(truth.other) == {"verdict"}
    figures.draw_legend(step_figures.draw_object_share(figures.new_figure()[1], truth))


def test_samples_that_share_no_word_are_drawn_with_a_sentence(rng):
    attention = rng.dirichlet(np.ones(64), (3, 1)) * 0.5
    traces = [trace_of(attention, [f"{name}{i}" for i in range(3)]) for name in "ab"]
    study = step_dependence(traces, 2)
    assert study.words == {}
    page = step_figures.headline(traces[0], Sample("own", sample_of().image, "?"), study, None)
    assert "no word is used by enough samples" in [text.get_text() for text in page.axes[-1].texts]


def test_without_truth_there_is_none(rng):
    trace = random_traces(rng, 1)[0]
    own = Sample("own", sample_of().image, "what is this ?")
    assert object_attention([trace], [own], 2) is None
    assert object_attention([trace_of(trace.attention.values, ["hm"] * len(WORDS))], [sample_of()], 2) is None
    study = step_dependence([trace] * 2, 2)
    assert step_numbers(study, None)["objects"] is None
    assert "nothing can be said about named objects" in step_findings(study, None)


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
    told = replace(truth, share={"row": above, "shape": above}, other={"row": below, "shape": replace(other, high=0.3)})
    assert "than another object does at `row`; at `shape` that is not shown" in step_findings(study, told)
    text = step_findings(study, truth)
    assert f"{numbers['consecutive_overlap']['estimate']:.3f}" in text
    assert f"{numbers['objects']['share_named']['estimate']:.1%}" in text
    assert f"{numbers['text_share']['estimate']:.1%}" in text


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
