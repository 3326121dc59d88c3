"""Attention on the objects that a step names, on constructed traces of a scene drawn by hand."""

import json

import numpy as np
import pytest
from made_scene import NAMED, OBJECTS, SIDE, WORDS, cell_patches, random_traces, sample_of, trace_of

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.studies.step_dependence import figures as step_figures
from visionpulse_analysis.studies.step_dependence.measure import step_dependence
from visionpulse_analysis.studies.step_dependence.object_attention import named_objects, object_attention
from visionpulse_analysis.studies.step_dependence.report import step_findings, step_numbers


def known_truth(traces, samples, layer, **options):
    truth = object_attention(traces, samples, layer, **options)
    assert truth is not None
    return truth


def test_attention_on_the_named_object_is_all_on_it():
    attention = np.full((len(WORDS), 2, SIDE**2), 0.5 / 64)
    for step, index in enumerate(NAMED):
        if index is not None:
            attention[step, 0] = 0
            attention[step, 0, cell_patches(OBJECTS[index])] = 0.2
    samples = [sample_of("a"), sample_of("b")]
    truth = known_truth([trace_of(attention)] * 2, samples, 2)
    assert list(truth.share) == ["colour", "shape", "row", "column", "verdict"]
    assert {i.value for i in truth.share.values()} == {i.value for i in truth.hit.values()} == {1}
    assert truth.share_named.value == 1
    assert truth.other_named is not None and truth.other_named.value == 0
    assert truth.chance == 4 / 64
    # The second layer is even: chance, at every kind.
    assert truth.by_layer == pytest.approx(np.tile([1, 4 / 64], (5, 1)))
    assert truth.unknown == 0
    assert truth.mass["template"].value == pytest.approx(0.5, rel=1e-2)


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
    assert truth.share_named.value == pytest.approx(np.mean(share))
    assert truth.other_named is not None and truth.other_named.value == pytest.approx(np.mean(other))
    assert truth.hit_named.value == pytest.approx(np.mean(hit))
    shapes = [t.attention.values[i, 0].astype(float) for t in traces for i in (2, 10)]
    cells = [cell_patches(OBJECTS[i]) for _ in traces for i in (0, 1)]
    expected = np.mean([row[c].sum() / row.sum() for row, c in zip(shapes, cells, strict=True)])
    assert truth.by_layer[list(truth.share).index("shape"), 0] == pytest.approx(expected)
    assert truth.text_share["row"].value == np.mean([t.mass.values[i, 1] < 0.4 for t in traces for i in (3, 11)])


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
