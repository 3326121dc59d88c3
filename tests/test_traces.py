"""Trace: what goes in comes out; wrong arrays are named."""

import re
from pathlib import Path

import numpy as np
import pytest
from exchanged import authors_fields, own, save
from made_arrays import LAYERS, STEPS, arguments, assert_same, make

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.attention import layer_similarity
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces.exchange import read_npz


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_what_was_given_is_what_is_read_also_from_disk(heads: bool, pruned: bool, tmp_path: Path) -> None:
    given = arguments(heads, pruned)
    trace = create_trace(**given)
    trace.save(tmp_path / "t")
    opened = Trace.open(tmp_path / "t")
    for one in [trace, opened]:
        np.testing.assert_array_equal(one.attention, given["attention"])
        np.testing.assert_array_equal(one.mass, given["mass"])
        np.testing.assert_array_equal(one.token_ids, given["token_ids"])
        np.testing.assert_array_equal(one.logprobs, given["logprobs"])
        assert (one.tokens, one.layers, one.heads) == (given["tokens"], LAYERS, given["heads"])
        assert one.prompt_tokens == given["prompt_tokens"] and one.question == "where <b> ?" and len(one) == STEPS
        assert one.grid.equals(given["grid"])
        assert one.meta == {**given["meta"], "complete": True, "format_version": 1}
        for mine, original in zip(one.images, given["images"], strict=True):
            np.testing.assert_array_equal(mine, original)
        for name in ["kept", "budget", "k", "pruner_mass"]:
            if pruned:
                np.testing.assert_array_equal(getattr(one, name), given[name])
            else:
                assert getattr(one, name) is None
    assert_same(opened, trace)
    assert opened.data_hash == trace.data_hash
    axes = ("step", "layer", "head", "patch") if heads else ("step", "layer", "patch")
    assert opened.attention.dims == axes and opened.attention.dtype == np.float16
    assert set(opened.attention.coords) >= {"position", "image", "frame", "row", "col", "layer", "token"}


def test_at_selects_by_model_index_and_averages_heads() -> None:
    given = arguments(heads=True)
    trace = create_trace(**given)
    row = trace.at(step=1, layer=7, head=3)
    assert row.dtype == np.float32 and row.shape == (14,)
    np.testing.assert_array_equal(row, given["attention"][1, 1, 1])
    by_hand = sum(given["attention"][4, 0, h].astype(float) for h in range(3)) / 3
    np.testing.assert_allclose(trace.at(step=4, layer=2), by_hand, rtol=1e-6)
    mean = make(attention=given["attention"][:, :1, 0], mass=given["mass"][:, :1, 0], layers=[7])
    np.testing.assert_array_equal(mean.at(step=0), mean.at(step=0, layer=7))


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"step": 5, "layer": 2}, r"step 5 is out of range: this trace has steps 0..4"),
        ({"step": -1, "layer": 2}, r"step -1 is out of range"),
        ({"step": 0, "layer": 3}, r"layer 3 was not recorded; recorded layers: \[2, 7\]"),
        ({"step": 0}, r"several layers were recorded, \[2, 7\]: choose one"),
        ({"step": 0, "layer": 2, "head": 0}, r"head 0 was not recorded: this trace holds the mean"),
    ],
)
def test_selecting_what_was_not_recorded_is_one_clear_error(request_: dict, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        make().at(**request_)
    if "head" in request_:
        with pytest.raises(IndexError, match=r"head 1 was not recorded; recorded heads: \[0, 3, 4\]"):
            create_trace(**arguments(heads=True)).at(0, 2, head=1)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"attention": np.zeros((5, 3, 14))}, ValueError, r"attention .*: axis layer has 3, expected 2"),
        ({"attention": np.zeros((5, 2, 13))}, ValueError, r"axis patch has 13, expected 14"),
        ({"attention": np.zeros((5, 2, 3, 14))}, ValueError, r"attention must be \[step, layer, patch\]"),
        (
            {"attention": np.zeros((5, 2, 14), complex)},
            TypeError,
            "attention must be float16, got complex128",
        ),
        ({"mass": np.zeros((4, 2))}, ValueError, r"mass .*: axis step has 4, expected 5"),
        ({"tokens": ["a"] * 4}, ValueError, r"attention .*: axis step has 5, expected 4"),
        ({"tokens": "abcde"}, TypeError, "tokens must be a list of str"),
        ({"tokens": ["a", "b", 3, "d", "e"]}, TypeError, r"tokens\[2\] must be str, got int"),
        ({"token_ids": np.full(5, 0.5)}, TypeError, "token_id must be int64, got float64"),
        ({"kept": np.ones((5, 14))}, TypeError, "kept must be bool, got float64"),
        ({"kept": np.ones((5, 13), bool)}, ValueError, "kept .*: axis patch has 13"),
        ({"budget": 0.5}, ValueError, r"budget must be \[step\] with 1 axes"),
        ({"layers": [2, 2]}, ValueError, "layers must be model indices"),
        ({"layers": [0.5, 1]}, TypeError, "layers must be a list of whole numbers"),
        (
            {"images": [np.zeros((4, 4), np.uint8)]},
            TypeError,
            r"images\[0\] must be uint8 \[row_px, col_px, 3\]",
        ),
        ({"meta": {"seed": np.int64(3)}}, TypeError, r"meta\['seed'\] must be a JSON value.*int64"),
        (
            {"meta": {"pruner": {"a": [1, {2}]}}},
            TypeError,
            r"meta\['pruner'\]\['a'\]\[1\] must be .* got set",
        ),
        ({"meta": {"x": float("nan")}}, ValueError, r"meta\['x'\] is nan"),
        ({"meta": {1: 2}}, TypeError, "meta: keys must be str, got 1"),
        ({"meta": {"question": "\ud800"}}, ValueError, r"meta\['question'\] is not valid Unicode"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**change)


@pytest.mark.parametrize("layers", [[7], [0, 7]])
def test_visible_counts_without_a_layer_that_was_recorded_are_refused(layers: list[int]) -> None:
    given = arguments(heads=False)
    given |= {
        "layers": layers,
        "attention": given["attention"][:, : len(layers)],
        "mass": given["mass"][:, : len(layers)],
    }
    counts = np.ones((STEPS, 8), np.int32)
    assert create_trace(**given, k_per_layer=counts).k_per_layer.shape == (STEPS, 8)
    with pytest.raises(ValueError, match="k_per_layer has 7 layers, but layer 7 was recorded"):
        create_trace(**given, k_per_layer=counts[:, :7])


ANALYSIS = "<|channel|>analysis<|message|>"


@pytest.mark.parametrize(
    "text, prompt, thinking, answer",
    [
        ("<think> red . </think> r0 c2 <|im_end|>", [], "red .", "r0 c2"),
        ("red . </think> r0 c2</s>", ["<think>", "\n"], "red .", "r0 c2"),
        ("red .", ["<think>", "\n"], "red .", ""),
        ("<think> red", [], "red", ""),
        ("r0 <div> c2", ["where", "?"], "", "r0 <div> c2"),
        ("<think>It is red.</think><answer>red</answer><|user|>", [], "It is red.", "red"),
        ("<think>a</think>\n<answer><|begin_of_box|>red<|end_of_box|></answer>", [], "a", "red"),
        ("<think>a</think><|begin_of_box|>red", [], "a", "red"),
        ("<THINK>a</THINK>red", [], "a", "red"),
        ("<thought>a</thought>red", [], "a", "red"),
        ("<reasoning>a</reasoning><answer>red</answer>", [], "a", "red"),
        ("<REASONING>a", [], "a", ""),
        ("<think>a</think>red<\uff5cend\u2581of\u2581sentence\uff5c>", [], "a", "red"),  # of DeepSeek
        ("<think>a</think>\\boxed{red}, not \\boxed{}", [], "a", "red"),
        ("◁think▷ a ◁/think▷ red<|im_end|>", [], "a", "red"),
        ("a ◁/think▷ red[EOS]", ["◁think▷"], "a", "red"),
        ("◁think▷ a", [], "a", ""),
        ("[THINK]a[/THINK]red</s>", [], "a", "red"),
        ("<seed:think>a</seed:think>red<seed:eos>", [], "a", "red"),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>final<|message|>red<|return|>", [], "a", "red"),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>final <|constrain|>x<|message|>red", [], "a", "red"),
        (f"{ANALYSIS}a", [], "a", ""),
        ("<think>a <think>b</think> c</think> red", [], "a b c", "red"),
        ("<think>a</think> red <think> b", [], "a b", "red"),
        ("<think>a <answer>red</answer>", [], "a", "red"),
        ("<think>put it in <answer> tags", [], "put it in <answer> tags", ""),
        ("<think>a</think>So <answer>no</answer>, <answer>red", [], "a", "red"),
        ("red</answer>", [], "", "red"),
        ("<think>a</think>So $\\boxed{no}$, $\\boxed{\\text{red}}$.", [], "a", "red"),
        ("\\boxed{\\frac{1}{2}} of it", [], "", "\\frac{1}{2}"),
        ("<SUMMARY>a</SUMMARY><CONCLUSION> red </CONCLUSION>", [], "", "red"),
        ("red", ["<think>", "\n\n", "</think>", "\n\n"], "", "red"),
        ("a", ["<", "think", ">", "\n"], "a", ""),
    ],
)
def test_thinking_and_answer(text: str, prompt: list[str], thinking: str, answer: str) -> None:
    trace = make(meta={"text": text, "end_tokens": ["[EOS]"]}, prompt_tokens=prompt)
    assert (trace.text, trace.thinking, trace.answer) == (text, thinking, answer)


def test_text_falls_back_to_the_tokens() -> None:
    assert make().text == "<think> red </b>é</think> r0 c2" and make().answer == "r0 c2"


@pytest.mark.parametrize("name", ["attention", "mass", "token_ids", "logprobs", "kept", "budget", "k", "pruner_mass"])
def test_hash_sees_every_array(name: str) -> None:
    changed = np.array(arguments()[name])
    changed.flat[-1] = not changed.flat[-1] if changed.dtype == bool else changed.flat[-1] + 1
    assert make(**{name: changed}).data_hash != make().data_hash


def test_hash_sees_texts_grid_and_pixels_but_not_provenance() -> None:
    given = arguments()
    one = make().data_hash
    assert make(meta={"id": "other"}).data_hash == one and re.fullmatch("[0-9a-f]{64}", one)
    others = [
        make(tokens=["<think> ", "red", " </b>é", "</think>", " r0 c2"]),
        make(prompt_tokens=[]),
        make(layers=[2, 8]),
        make(images=[255 - image for image in given["images"]]),
        make(grid=PatchGrid.from_grid(range(14), [2, 4], [3, 2], [(16, 30), (20, 14)])),
        make(kept=None),
    ]
    assert len({one, *(other.data_hash for other in others)}) == 1 + len(others)


def test_with_meta_changes_only_provenance() -> None:
    changed = make().with_meta({"question": "why"})
    assert changed.meta == {"question": "why", "complete": True, "format_version": 1}
    assert changed.data_hash == make().data_hash
    with pytest.raises(TypeError, match=r"meta\['x'\]"):
        make().with_meta({"x": object()})


def test_html_shows_the_trace_and_escapes_every_text() -> None:
    evil = "<script>alert('x')</script>"
    trace = make(tokens=[evil] * 5, meta={"question": evil, "model": evil, "pruner": {"name": evil}, "finished": True})
    html = trace._repr_html_()
    assert "<script" not in html and html.count("&lt;script&gt;") == 5 + 3
    assert "data:image/png;base64," in html and "step 5, layer 2, patch 14" in html and "True" in html
    assert "img" not in make(images=[])._repr_html_()
    masses = trace.mass.mean("layer").values
    assert all(f"step {step}, visual mass {mass:.3f}" in html for step, mass in enumerate(masses))


def test_not_a_trace_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['mass'\] missing; use create_trace"):
        Trace(make().dataset.drop_vars("mass"))


def test_a_trace_of_no_steps_and_one_of_zeros_survive(tmp_path: Path) -> None:
    nothing = make(
        **{
            "attention": np.zeros((0, 2, 14)),
            "mass": np.zeros((0, 2)),
            "tokens": [],
            "token_ids": [],
            "logprobs": [],
        },
        **{"kept": None, "budget": None, "k": None, "pruner_mass": None},
    )
    zeros = make(kept=np.zeros((5, 14), bool), attention=np.zeros((5, 2, 14)))
    for name, trace in {"nothing": nothing, "zeros": zeros}.items():
        trace.save(tmp_path / name)
        assert_same(Trace.open(tmp_path / name), trace)


class TestLayerSimilarity:
    """One question with one answer, whichever form a trace keeps it in."""

    def test_of_recorded_rows_with_and_without_heads(self):
        for heads in (False, True):
            trace = own(heads, tokens=["a"] * 70)
            found = trace.layer_similarity()
            rows = trace.attention.values.astype(np.float64)
            assert np.allclose(found, layer_similarity(rows.mean(axis=2) if heads else rows), rtol=1e-12)
            assert found.dims == ("layer", "other_layer") and found["layer"].values.tolist() == trace.layers
            assert found.sel(layer=7, other_layer=2) == found.values[1, 0]

    def test_of_an_imported_trace_it_is_the_mean_of_the_file(self, tmp_path):
        fields = authors_fields(9)
        fields["similarity_by_step"][2, 3] = fields["similarity_by_step"][2, :, 3] = 0  # a layer without mass
        trace = read_npz(save(tmp_path, fields))
        found, given = trace.layer_similarity(), fields["similarity_by_step"].astype(np.float64)
        assert found["layer"].values.tolist() == [0, 1, 2, 3, 4]
        others = [0, 1, 2, 4]
        assert np.allclose(found.values[np.ix_(others, others)], given.mean(0)[np.ix_(others, others)], rtol=1e-15)
        assert np.allclose(found.values[3], np.delete(given, 2, axis=0).mean(0)[3], rtol=1e-15)

    def test_of_one_layer_there_is_none(self, tmp_path):
        trace = read_npz(save(tmp_path, authors_fields(all_layers=False)))
        with pytest.raises(ValueError, match=r"compares layers, but this trace of 6 steps has recorded \[2\]"):
            trace.layer_similarity()
        with pytest.raises(ValueError, match=r"2 or more layers to compare; got shape \(6, 1, 12\)"):
            layer_similarity(trace.attention)
