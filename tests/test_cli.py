"""The command line: JSON on standard output, one line of error, files where they were asked for."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis._util import files
from visionpulse_analysis.cli import app, key_values, literals
from visionpulse_analysis.cli.asking import drawing
from visionpulse_analysis.cli.base import show
from visionpulse_analysis.experiments.bench import recording
from visionpulse_analysis.testbed.training.model import Size


@pytest.fixture
def call():
    def run(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def picture(pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def payload(page):
    """What an explorer page shows."""
    return json.loads(page.read_text().split('id="payload">')[1].split("</script>")[0])


def test_decode_json(call, picture, scenes_folder, tmp_path, monkeypatch):
    out = call(
        "decode", picture, "where ?", "--model", scenes_folder, "--max-new-tokens", 5, "--layers", "2,5",
        "--heads", "3,1", "--execution", "gathered",
        "--pruner", "visionpulse", "-p", "budget=0.25", "--out", tmp_path / "trace", "--store", tmp_path / "store",
        "--id", "one", "--explore", tmp_path / "page.html", "--json",
    )  # fmt: skip
    result = json.loads(out.stdout)
    saved = vpa.Trace.open(tmp_path / "trace")
    assert result["layers"] == saved.layers == [2, 5] and saved.heads == [3, 1]
    assert saved.meta["execution"] == "gathered"
    assert result["tokens"] == saved.tokens and result["kept"] == [64, 16, 16, 16, 16]
    assert result["meta"]["pruner"]["budget"] == 0.25
    assert vpa.TraceStore(tmp_path / "store")["one"].data_hash == saved.data_hash
    shown = payload(tmp_path / "page.html")
    assert [trace["id"] for trace in shown["traces"]] == ["one-dense", "one"]
    assert [trace["name"] for trace in shown["traces"]] == ["Dense", "Pruned"]
    assert vpa.TraceStore(tmp_path / "store")["one-dense"].kept is None
    monkeypatch.chdir(tmp_path)
    again = call(*shlex.split("step=1&layer=5".join(shown["command"]))[1:])
    assert (tmp_path / "view.pdf").exists() and "view.svg" in again.stdout
    page = json.loads(call("explore", tmp_path / "store", "--out", tmp_path / "again.html", "--json").stdout)
    assert page["bytes"] == (tmp_path / "again.html").stat().st_size
    drawn = call("explore", tmp_path / "store", "--view", "step=2&layer=5", "--figure", tmp_path / "view.pdf", "--json")
    written = json.loads(drawn.stdout)["figures"]
    assert {path.rsplit(".", 1)[1] for path in written} == {"png", "pdf", "svg"}
    assert (
        "error" in call("explore", tmp_path / "store", "--view", "step=99", "--figure", tmp_path / "v", code=2).stderr
    )


def test_a_page_without_a_store_keeps_its_traces_beside_it(call, picture, scenes_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    asked = ("decode", picture, "where ?", "--model", scenes_folder, "--max-new-tokens", 2)
    words = (*asked, "--explore", "out/page.html")
    call(*words, "--no-keep-traces")
    assert not Path("out/page.traces").exists() and Path("out/page.html").exists()
    call(*words)
    call(*words, "--pruner", "visionpulse")  # a page may be written again
    assert vpa.TraceStore("out/page.traces").ids == ["trace", "trace-dense"]
    monkeypatch.chdir("out")
    call(*shlex.split("step=0&trace=pruned".join(payload(Path("page.html"))["command"]))[1:])
    assert Path("view.pdf").exists()


def test_a_page_that_cannot_be_written_is_refused_before_decoding(call, picture, scenes_folder, tmp_path):
    decode = ("decode", picture, "where ?", "--model", scenes_folder, "--max-new-tokens", 1, "--store", tmp_path / "s")
    assert "Create it first" in call(*decode, "--explore", tmp_path / "no" / "page.html", code=2).stderr
    call(*decode, "--id", "one-dense")
    words = (*decode, "--id", "one", "--pruner", "visionpulse", "--explore", tmp_path / "page.html")
    assert "trace 'one-dense' exists" in call(*words, code=2).stderr
    assert vpa.TraceStore(tmp_path / "s").ids == ["one-dense"]


def test_decode_text_and_sampling(call, picture, scenes_folder):
    words = (
        "decode",
        picture,
        "where ?",
        "--model",
        scenes_folder,
        "--max-new-tokens",
        4,
        "--temperature",
        2.0,
    )
    assert call(*words, "--seed", 1).stdout != call(*words, "--seed", 2).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decode", "missing.png", "where ?", "--model", "MODEL"), "error: no image at missing.png"),
        (("decode", "PICTURE", " ", "--model", "MODEL"), "error: the question is empty"),
        (
            ("decode", "PICTURE", "a", "--model", "MODEL", "--layers", "99"),
            "expected different indices from 0 to 7",
        ),
        (
            ("decode", "PICTURE", "a", "--model", "MODEL", "--pruner", "magic"),
            "error: no pruner 'magic'; known:",
        ),
        (("decode", "PICTURE", "a", "--model", "no-such"), "error: no model 'no-such'"),
        (
            ("decode", "PICTURE", "a", "--model", "MODEL", "--pruner", "random", "-p", "budget"),
            "expected KEY=VALUE",
        ),
        (("explore", "no-store"), "error:"),
        (("provenance", "PICTURE"), "error:"),
        (("figures", "99_nothing"), "error:"),
    ],
)
def test_errors_are_one_line(call, picture, scenes_folder, words, message):
    stand_ins = {"PICTURE": picture, "MODEL": scenes_folder}
    result = call(*[stand_ins.get(word, word) for word in words], code=2)
    assert message in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


def test_where_an_error_came_from(call):
    result = CliRunner().invoke(app, ["--traceback", "explore", "no-store"])
    assert isinstance(result.exception, FileNotFoundError) and "error:" not in result.stderr
    assert "error: " in call("explore", "no-store", code=2).stderr  # asked for anew each time


def test_a_trace_id_that_is_not_in_the_store(call, picture, scenes_folder, tmp_path):
    call(
        "decode",
        picture,
        "a",
        "--model",
        scenes_folder,
        "--max-new-tokens",
        1,
        "--store",
        tmp_path / "s",
        "--id",
        "x",
    )
    assert "y" in call("explore", tmp_path / "s", "--sample", "y", code=2).stderr


def test_provenance(call, tmp_path):
    from visionpulse_analysis.figures import new_figure, save

    fig, ax = new_figure()
    ax.plot([0, 1])
    paths = save(fig, "line", folder=tmp_path, parameters={"n": 3}, seed=5)
    for path in paths:
        found = json.loads(call("provenance", path, "--json").stdout)
        assert found["parameters"] == {"n": 3} and found["seed"] == 5


def test_train_and_evaluate(call, tmp_path, monkeypatch):
    from visionpulse_analysis.testbed import worlds
    from visionpulse_analysis.testbed.training import evaluation, plan, publishing

    monkeypatch.setattr(worlds, "VISION_STEPS", 2)
    monkeypatch.setattr(evaluation, "UNTRAINED_SIZES", {5: 2})
    monkeypatch.setattr(evaluation, "LIMIT", 12)  # a model of two steps never ends a trace
    monkeypatch.setattr(publishing, "ANCHOR_PICTURES", 2)
    tiny = (plan.Stage("read", 2, {4: 1.0}, {"describe": 1.0}, 2, 1, (1e-3, 1e-3)),)
    monkeypatch.setattr(worlds.Scenes, "plan", tiny)
    state = json.loads(call("train", "--folder", tmp_path / "run", "--publish", tmp_path / "model", "--json").stdout)
    assert state["step"] == 2 and state["stage"] == 1
    scores = json.loads(call("evaluate", "--model", tmp_path / "model", "--limit", 2, "--json").stdout)
    assert set(scores["tasks"]) == {"find", "compare", "count"}
    assert scores["tasks"]["find"]["n"] == 2 and len(scores["horizon"]["row"]) == 9
    assert {"dense", "random", "cost_points"} <= set(scores["control_random_5"])
    text = call("evaluate", "--model", tmp_path / "model", "--limit", 2, "--no-controls").stdout
    assert "256 patches  find" in text
    assert "drop --model" in call("evaluate", "--model", tmp_path / "model", "--card", code=2).stderr


def test_a_card_of_other_scores_is_refused(tmp_path):
    from visionpulse_analysis.testbed.training.publishing import write_card

    with pytest.raises(ValueError, match="scores of weights 0123"):
        write_card({"weights": "0123"}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_card_is_not_written_into_an_installed_package(call, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(files, "_IN_WHEEL", tmp_path)
    said = call("evaluate", "--card", code=2).stderr
    assert str(tmp_path / "data") in said and "VISIONPULSE_DATA" in said
    monkeypatch.setenv("VISIONPULSE_DATA", str(tmp_path.parent))
    assert files.own_data_folder() == tmp_path.parent


def test_bench_recording(call, monkeypatch):
    """Of a small model; one fresh process stands for the eight, whose variants the rounds run here."""
    small, peak = recording.random_vlm(Size(2, 64, 4, 2, 16, 128)), recording.peak_memory
    fresh = peak("watch_one_layer", 64, 2)
    asked: list[tuple] = []
    monkeypatch.setattr(recording, "random_vlm", lambda: small)
    monkeypatch.setattr(recording, "peak_memory", lambda *given: asked.append(given) or fresh)
    result = json.loads(call("bench", "recording", "--visual-tokens", 64, "--steps", 2, "--rounds", 1, "--json").stdout)
    variants = ["plain", "one_layer", "all_layers", "all_heads", "generate", "watch_one_layer", "watch_all_layers"]
    assert [row["variant"] for row in result["rows"]] == [*variants, "eager"]
    assert asked == [(variant, 64, 2) for variant in [*variants, "eager"]]
    for row in result["rows"]:
        assert set(row["ratio_to_plain"]) == {"min", "median", "max"} and row["peak_memory_mb"] > 100
    assert "square number" in call("bench", "recording", "--visual-tokens", 65, code=2).stderr


def test_every_command_takes_json():
    from typer.main import get_command

    def leaves(command: Any, path: tuple[str, ...] = ()):
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from leaves(inner, (*path, name))
        else:
            yield path, command

    found = dict(leaves(get_command(app)))
    assert len(found) >= 7
    for path, command in found.items():
        assert any("--json" in getattr(p, "opts", ()) for p in command.params), path


def test_explore_shows_the_trace_that_was_asked_for(call, picture, scenes_folder, tmp_path):
    words = ("--model", scenes_folder, "--max-new-tokens", 1, "--store", tmp_path / "store", "--id")
    for name, question in (("first", "where is the red circle ?"), ("second", "how many blue shapes ?")):
        call("decode", picture, question, *words, name)
    for name, question in (("second", "how many blue shapes ?"), ("first", "where is the red circle ?")):
        call("explore", tmp_path / "store", "--sample", name, "--out", tmp_path / "page.html")
        assert question in (tmp_path / "page.html").read_text()


def test_json_has_no_nan(capsys):
    show({"a": float("nan"), "b": [1.5, (float("inf"),)]}, True, "")
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, [None]]}


def test_parameters():
    assert key_values(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    assert literals(["a=1", "b=None", "c=word", "d=[1, 2]"]) == {"a": 1, "b": None, "c": "word", "d": [1, 2]}
    for wrong in ("a", "=1"):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            key_values([wrong])


def test_how_tokens_are_drawn_is_said_together(call, picture):
    assert drawing(None, None, None) == "model" and drawing(None, None, None, greedy=True) is None
    assert drawing(0.7, None, None) == vpa.Sample(0.7)
    assert drawing(0.7, 0.8, 20) == vpa.Sample(0.7, 0.8, 20)
    for command in (("decode",), ("compare", "--pruners", "visionpulse:10")):
        failed = call(*command, picture, "where ?", "--model", "scenes", "--top-k", 20, code=2)
        assert "--top-p and --top-k are of sampling; say --temperature too" in failed.stderr


def test_playground_writes_a_notebook_with_what_was_asked_and_opens_it(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr("os.execv", lambda *command: started.append(command))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("a.png")
    call("playground", "a.png", 'what\'s "it" ?', "--pruner", "fastv(budget=0.2)", "--lab=--no-browser")
    code = nbformat.read("playground.ipynb", 4).cells[1].source
    asked = []
    monkeypatch.setattr(vpa, "playground", lambda *given, **named: asked.append((given, named)), raising=False)
    exec(code, {})
    assert asked == [(("scenes",), {"image": "a.png", "question": 'what\'s "it" ?', "pruner": "fastv(budget=0.2)"})]
    assert started == [(sys.executable, [sys.executable, "-m", "jupyterlab", "playground.ipynb", "--no-browser"])]
    call("playground", "--model", "scenes", "--trust-remote-code", "--notebook", "trusted.ipynb", "--json")
    monkeypatch.setattr(vpa, "load", lambda name, **named: (name, named))
    exec(nbformat.read("trusted.ipynb", 4).cells[1].source, {})
    assert asked[1] == ((("scenes", {"trust_remote_code": True}),), {"pruner": "visionpulse"})
    kept = (tmp_path / "playground.ipynb").read_bytes()
    call("playground")
    assert len(started) == 2
    assert "playground.ipynb exists" in call("playground", "a.png", code=2).stderr
    for wrong, words in ((["no.png"], "no image at no.png"), (["--pruner", "fastw"], "fastw"), (["--model", "x"], "x")):
        assert words in call("playground", *wrong, "--notebook", "other.ipynb", code=2).stderr
    assert len(started) == 2 and (tmp_path / "playground.ipynb").read_bytes() == kept
    assert not (tmp_path / "other.ipynb").exists()


def test_decode_says_what_it_wrote_and_that_an_answer_was_cut_off(call, picture, scenes_folder, tmp_path):
    asked = "decode", picture, "where ?", "--model", scenes_folder, "--layers", 2, "--max-new-tokens", 1
    where = tmp_path / "trace", tmp_path / "page.html", tmp_path / "store"
    said = call(*asked, "--out", where[0], "--explore", where[1], "--store", where[2], "--id", "one").stdout
    told = [f"wrote {where[0]}", f"wrote {where[1]}", f"wrote trace 'one' into {where[2]}"]
    assert said.splitlines()[-3:] == told and "(cut off: the limit, --max-new-tokens, is 1)" in said
    assert not [line for line in call(*asked).stdout.splitlines() if line.startswith("wrote")]
