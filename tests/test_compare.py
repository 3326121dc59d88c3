"""`visionpulse compare`: the numbers are those of the traces, and a mistake leaves nothing behind."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.experiments.judging import Reference
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.figures.saving import command_for
from visionpulse_analysis.pruners import FastV, PyramidDrop, VisionPulse
from visionpulse_analysis.studies.pruner_comparison import one_image as side_by_side
from visionpulse_analysis.studies.pruner_comparison.settings import Basis

NAMED = "visionpulse(budget=0.25), keep_all, fastv, divprune | visionpulse"


@pytest.fixture(scope="module")
def picture(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    Image.fromarray(pictures[0]).save(path)
    return path


@pytest.fixture(scope="module")
def compare(picture, scenes_folder):
    def run(*words, code=0):
        asked = ("compare", picture, "where ?", "--model", scenes_folder, "--max-new-tokens", 6, *words)
        result = CliRunner().invoke(app, [str(word) for word in asked])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="module")
def compared(compare, tmp_path_factory):
    """Folder and JSON of one run."""
    out = tmp_path_factory.mktemp("compared") / "new" / "folder"
    words = ("--pruners", NAMED, "--budget", 0.5, "--layers", "2,5", "--seed", 3, "--temperature", 1.5)
    result = compare(*words, "--store", out / "store", "--out", out, "--json")
    return out, json.loads(result.stdout)


def test_the_rows_are_those_of_the_traces(compared, vlm, picture):
    rows = {row["name"]: row for row in compared[1]["rows"]}
    assert list(rows) == [
        "dense",
        "visionpulse(budget=0.25)",
        "keep_all, own setting",
        "fastv",
        "divprune | visionpulse",
    ]
    dense = rows["dense"]
    assert dense["same_answer"] and dense["divergence"] is None and dense["retention"] == 1.0
    assert {**rows["keep_all, own setting"], "name": "dense", "pruner": None} == dense
    assert [rows[name]["retention"] for name in ("visionpulse(budget=0.25)", "fastv")] == [0.25, 0.5]
    options = {"seed": 3, "max_new_tokens": 6, "sample": Sample(1.5), "layers": "none"}
    sample = vpa.decode(vlm, picture, "where ?", **options)
    other = vpa.decode(vlm, picture, "where ?", pruner=VisionPulse(budget=0.25), **options)
    row, same = rows["visionpulse(budget=0.25)"], np.array(sample.token_ids) == np.array(other.token_ids)
    assert row["divergence"] == (None if same.all() else int(np.argmin(same)))
    assert (row["steps"], row["answer"], row["finished"]) == (6, other.answer.strip(), other.meta["finished"])
    costs = vpa.costs_of(other)
    assert row["flops"] == costs.flops.sum() and row["kv_bytes_read"] == costs.kv_bytes_read.sum()
    assert row["peak_kv_bytes"] == costs.peak_kv_bytes


def test_figure_and_page_hold_what_was_compared(compared):
    out, result = compared
    names = ["kept.png", "kept.pdf", "kept.svg", "explorer.html"]
    assert result["written"] == [str(out / name) for name in names]
    found = read_provenance(out / "kept.png")
    assert found["numbers"] == {row["name"]: row for row in result["rows"]} and found["seed"] == 3
    assert found["parameters"]["pruners"] == NAMED and found["parameters"]["budget"] == 0.5
    again = shlex.split(command_for(found).partition("visionpulse ")[2])
    assert again[:3] == ["compare", "--out", "again"] and again[-2:] == [found["parameters"]["images"][0], "where ?"]
    given = dict(zip(again[3:-2:2], again[4:-2:2], strict=True))
    assert given.pop("--model") == found["parameters"]["model"]
    assert given == {
        "--pruners": NAMED, "--budget": "0.5", "--layers": "2,5", "--temperature": "1.5", "--seed": "3",
        "--max-new-tokens": "6",
    }  # fmt: skip
    shown = json.loads((out / "explorer.html").read_text().split('id="payload">')[1].split("</script>")[0])
    labels = ["", "visionpulse", "keep_all", "fastv", "divprune | visionpulse"]
    assert [trace["label"] for trace in shown["traces"]] == labels
    ids = ["compare-dense", "compare-1", "compare-2", "compare-3", "compare-4"]
    assert [trace["id"] for trace in shown["traces"]] == ids and {*vpa.TraceStore(out / "store").ids} == {*ids}


def test_without_a_store_the_traces_stand_beside_the_page(compare, tmp_path):
    compare("--pruners", "keep_all", "--out", tmp_path / "out", "--layers", 5, "--no-keep-traces")
    assert not (tmp_path / "out" / "explorer.traces").exists()
    for _ in range(2):  # the folder may be written again
        said = compare("--pruners", "keep_all", "--out", tmp_path / "out", "--layers", 5)
    assert f"wrote {tmp_path / 'out' / 'explorer.traces'}" in said.stdout
    assert vpa.TraceStore(tmp_path / "out" / "explorer.traces").ids == ["compare-1", "compare-dense"]
    assert (
        "visionpulse explore explorer.traces --sample compare-dense --pruned compare-1"
        in (tmp_path / "out" / "explorer.html").read_text()
    )


def test_the_budget_is_for_pruners_written_without_parameters():
    basis = Basis(8, 3)
    found = side_by_side.named_pruners("fastv, visionpulse(budget=0.5), vtw, pyramiddrop, visionpulse", basis, 0.125)
    assert list(found) == ["fastv", "visionpulse(budget=0.5)", "vtw", "pyramiddrop", "visionpulse"]
    assert found["fastv"] == FastV(budget=0.125) and found["visionpulse(budget=0.5)"] == VisionPulse(budget=0.5)
    ratio = found["pyramiddrop"].ratio
    assert found["pyramiddrop"] == PyramidDrop(ratio=ratio) and ratio + ratio**2 + ratio**3 == pytest.approx(3 * 0.125)
    assert found["vtw"] == vpa.make_pruner("vtw", layer=1)
    both = side_by_side.named_pruners("fastv | random,divprune | visionpulse", basis, 0.1375)
    assert both["fastv | random"] == FastV() | vpa.make_pruner("random", budget=0.1375)
    # A first one of 20 % in 8 layers, of which the last 5 see 10 %.
    first, second = (
        pruner.budget for pruner in (both["divprune | visionpulse"].first, both["divprune | visionpulse"].second)
    )
    assert (first, second) == pytest.approx((0.2, 0.1))


def test_what_no_parameter_sets_to_the_budget_is_said_to_run_at_its_own_setting():
    found = side_by_side.named_pruners("mvw, vtw, lookm, divprune | mvw, mvw(tokens=3)", Basis(8, 3), 0.05)
    assert found["mvw, own setting"] == vpa.make_pruner("mvw") and found["vtw, own setting"] == vpa.make_pruner("vtw")
    assert list(found)[2:] == ["lookm", "divprune | mvw, own setting", "mvw(tokens=3)"]
    assert found["lookm"].budget == 0.05
    assert list(side_by_side.named_pruners("mvw, vtw", Basis(8, 3))) == ["mvw", "vtw"]
    presets = side_by_side.named_pruners("visionpulse:10, mvw | visionpulse:block(anchor_layer=2)", Basis(8, 3))
    assert list(presets) == ["visionpulse:10", "mvw | visionpulse:block(anchor_layer=2)"]
    assert presets["visionpulse:10"] == VisionPulse.ten_percent()
    with pytest.raises(ValueError, match=r"mvw and mvw\(tokens=32\) name the same pruner"):
        side_by_side.named_pruners("mvw, mvw(tokens=32)", Basis(8, 3), 0.05)


@pytest.mark.parametrize(
    ("pruners", "message"),
    [
        ("magic", "no pruner 'magic'; known:"),
        ("fastv,magic | fastv", "no pruner 'magic'; known:"),
        (" ", "no pruner named"),
        ("fastv,,random", "expected pruners separated by commas"),
        ("fastv, fastv", "fastv and fastv name the same pruner"),
        ("random(budget=0.5),random", "random(budget=0.5) and random name the same pruner"),
        ("fastv(layer=99)", "pruner fastv(layer=99) cannot run on"),
        ("random(budget=2)", "budget"),
        ("fastv(depth=2)", "has no parameter 'depth'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(compare, tmp_path, pruners, message):
    words = ("--pruners", pruners, "--budget", 0.5, "--out", tmp_path / "out", "--store", tmp_path / "store")
    result = compare(*words, code=2)
    last = result.stderr.splitlines()[-1]  # above it the bar of the loaded weights
    assert last.startswith("error: ") and message in last and "Traceback" not in result.stderr and result.stdout == ""
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("store/*"))


def test_what_goes_wrong_later_is_said_and_leaves_nothing_behind(compare, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in compare("--pruners", "fastv", "--out", tmp_path / "file", code=2).stderr
    words = ("--pruners", "fastv", "--store", tmp_path / "store", "--id", "a", "--out", tmp_path / "out")
    compare(*words)
    assert "trace 'a-dense'" in compare(*words, code=2).stderr
    words = ("--pruners", "fastv", "--max-new-tokens", 1, "--out", tmp_path / "short")
    assert "ends before any pruned step" in compare(*words, code=2).stderr and not (tmp_path / "short").exists()
    alone = CliRunner().invoke(app, ["compare", "where ?", "--pruners", "fastv"])
    assert alone.exit_code == 2 and "no image given" in alone.stderr


def test_the_table_says_what_changed_against_dense():
    dense = {
        "name": "dense", "pruner": None, "answer": "r2 c2", "same_answer": True, "steps": 20, "finished": True,
        "divergence": None, "retention": 1.0, "flops": 2.5e9, "kv_bytes_read": 3e6, "peak_kv_bytes": 999.0,
    }  # fmt: skip
    other = dict(
        dense, name="fastv", answer="", same_answer=False, steps=30, finished=False, divergence=7, retention=0.1,
        flops=2e9, kv_bytes_read=4.5e6,
    )  # fmt: skip
    head, first, second, _, *meaning = side_by_side.format_comparison([dense, other]).splitlines()
    assert head.split() == "answer same steps parts at kept flops kv bytes read peak kv bytes".split()
    assert first.split() == "dense r2 c2 yes 20 never 100.0 % 2.5 G 3 M 999".split()
    wanted = "fastv none no 30, cut off step 7 10.0 % 2 G (-20 %) 4.5 M (+50 %) 999"
    assert second.split() == wanted.split()
    said = " ".join(meaning)
    assert said.startswith("kept: share of the patches, mean over the steps after prefill and over the layers")
    assert "own setting: no parameter sets that share" in said and all(len(line) <= 120 for line in meaning)


@pytest.mark.parametrize(
    ("reference", "answer", "verdict", "shown"),
    [
        (Reference("relaxed", ("100",)), "104", (True, 1.0), "yes"),
        (Reference("exact", ("100",)), "104", (False, 0.0), "no"),
        (Reference("anls", ("brazil",)), "Brasil", (True, 5 / 6), "yes (0.83)"),
        (Reference("choice", ("B",), {"A": "one", "B": "two"}), "It is (B).", (True, 1.0), "yes"),
        (Reference("language model", ()), "104", (None, None), "not known"),
    ],
    ids=lambda value: value.judge if isinstance(value, Reference) else None,
)
def test_answers_are_judged_by_the_rules_of_sweeps(vlm, pictures, reference, answer, verdict, shown):
    trace = vpa.decode(vlm, pictures[0], "where ?", max_new_tokens=2, layers="none")
    row = side_by_side._judged(answer, reference)
    assert (row["right"], row["judge"]) == (verdict[0], reference.judge) and row["score"] == pytest.approx(verdict[1])
    [whole] = side_by_side.comparison({"dense": trace}, reference)
    assert whole["score"] == reference.score(trace.answer)
    assert "judge" not in side_by_side.comparison({"dense": trace})[0]
    table = side_by_side.format_comparison([whole | row])
    assert f"right ({reference.judge})" in table.splitlines()[0] and shown in table.splitlines()[1]


def test_the_command_judges_too(compare, tmp_path):
    words = ("--pruners", "keep_all", "--layers", 5, "--no-keep-traces", "--out", tmp_path / "out")
    options = ("--judge", "choice", "--right", "B", "--option", "A=nothing", "--option", "B=x")
    for row in json.loads(compare(*words, *options, "--json").stdout)["rows"]:
        score = Reference("choice", ("B",), {"A": "nothing", "B": "x"}).score(row["answer"])
        assert (row["score"], row["judge"]) == (score, "choice")
    known = read_provenance(tmp_path / "out" / "kept.png")["parameters"]
    assert known["right"] == ["B"] and known["judge"] == "choice"
    for wrong, message in [
        (("--judge", "relaxed"), "say --right"),
        (("--judge", "magic", "--right", "2"), "no judge 'magic'; known:"),
        (("--judge", "choice", "--right", "C", "--option", "A=x"), "the right option is 'C'"),
    ]:
        assert message in compare(*words, *wrong, code=2).stderr


def test_the_figure_shows_steps_that_all_reach_unless_one_ends_at_once(vlm, pictures):
    long = vpa.decode(vlm, pictures[0], "where ?", max_new_tokens=7, layers="none", pruner=VisionPulse(budget=0.25))
    assert len(long) == 7

    def figure(*lengths):
        traces = {str(n): vpa.Trace(long.dataset.isel(step=slice(n))) for n in lengths}
        return side_by_side.kept_figure({"dense": long, **traces})

    axes = figure(7).axes
    assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == ["step 1", "step 3", "step 4", "step 6"]
    axes = figure(2, 7).axes
    assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == ["step 1", "step 2", "step 3", "step 4"]
    assert sum(text.get_text() == "ended" for ax in axes for text in ax.texts) == 3
    with pytest.raises(ValueError, match="ends before any pruned step"):
        figure(1)


def test_of_several_images_the_figure_shows_the_one_that_dense_decoding_attends_to_most(vlm, pictures):
    shown, options = [pictures[0], pictures[1]], {"max_new_tokens": 3, "layers": "anchor"}
    dense = vpa.decode(vlm, shown, "where ?", **options)
    pruned = vpa.decode(vlm, shown, "where ?", pruner=VisionPulse(budget=0.25), **options)
    seen = [float(dense.attention.values[..., dense.grid.image == image].sum(dtype=float)) for image in (0, 1)]
    fig = side_by_side.kept_figure({"dense": dense, "visionpulse": pruned})
    assert fig.axes[0].get_ylabel() == f"image {1 + int(np.argmax(seen))}, step 1"
    assert fig.axes[0].images[0].get_array().shape == pictures[int(np.argmax(seen))].shape
