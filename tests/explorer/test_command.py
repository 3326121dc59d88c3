"""The command under the view draws the same view as a figure, pasted as it is shown."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from made_traces import make_pair, make_trace
from open_page import Explored

import visionpulse_analysis as vpa
from visionpulse_analysis.explorer import explore
from visionpulse_analysis.explorer.view import regenerate

ODD = "it's; $(touch owned) “\N{RIGHT-TO-LEFT OVERRIDE}"


def three():
    dense, pruned = make_pair()
    return dense, pruned, make_trace(budget=0.5, seed=3).with_meta({**pruned.meta, "id": "other"})


@pytest.fixture
def store(tmp_path):
    """A store in a folder with an odd name."""
    found = vpa.TraceStore(tmp_path / ODD, mode="a")
    for trace in three():
        found.add(trace)
    return found


@pytest.mark.browser
def test_it_works_when_pasted_in_the_folder_of_the_page(store, new_page, tmp_path):
    traces = [store[name] for name in ("dense-0", "pruned-0", "other")]
    (tmp_path / "pages").mkdir()
    page = explore(*traces, view="step=3", store=store.path).save(tmp_path / "pages" / "page.html")
    view = Explored(new_page(), page).open("step=12&layer=3&trace=difference&beside=2&rows=1-2&cols=3-3")
    assert view.text("commandNote") == "Run it in the folder of this page."
    command, path = view.text("command"), os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert "--view 'step=12&layer=3&trace=difference&beside=2&rows=1-2&cols=3-3' --figure view.pdf" in command
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", command], cwd=page.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in page.parent.iterdir()} == {"page.html", "view.pdf", "view.png", "view.svg"}
    assert not any(path.name == "owned" for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_store_it_is_python_that_works_when_pasted(tmp_path, monkeypatch, count):
    trace, *others = three()[:count]
    names = {"trace": trace, "dense": trace, "pruned": others}
    shown = regenerate(vpa.explore(trace, *others).packed["traces"], None)
    monkeypatch.chdir(tmp_path)
    exec("step=7&layer=3".join(shown["command"]), {"vpa": vpa, **names})
    assert {path.name for path in tmp_path.iterdir()} == {"view.pdf", "view.png", "view.svg"}
    assert "keep_traces=True" in shown["command_note"]


def test_traces_without_names_of_their_own_cannot_be_found_in_a_store():
    named = [{"id": "a", "name": "Dense"}, {"id": "b", "name": "Pruned"}]
    assert regenerate(named, "runs")["command"][0] == "visionpulse explore runs --sample a --pruned b --view '"
    for other in ("", "a"):
        command = regenerate([named[0], {**named[1], "id": other}], "runs")["command"]
        assert command[0] == "vpa.explore(dense, pruned, view='"


def test_page_and_widget_name_the_store_from_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    explorer = explore(make_trace(), store=Path("my traces"))
    assert shlex.split(explorer.packed["command"][0].removesuffix("'"))[2] == "my traces"
    assert f"visionpulse explore {shlex.quote('../my traces')} --sample dense-0" in (
        explorer.save("out/page.html").read_text().replace("\\u0026", "&")
    )


def test_the_figure_of_the_widget_is_that_of_its_view(tmp_path):
    explorer = explore(*make_pair(), view="step=3&layer=3")
    explorer.view = "step=30&layer=3&trace=pruned"
    figure = explorer.figure(tmp_path / "view.pdf")
    assert figure.axes[0].get_title("left").startswith("step 32: ")
    assert {path.name for path in tmp_path.iterdir()} == {"view.pdf", "view.png", "view.svg"}


def test_a_page_that_keeps_its_traces_replaces_those_of_an_earlier_one(tmp_path):
    first, second = make_trace(), make_trace(seed=5)
    for trace in (first, second):
        page = explore(trace).save(tmp_path / "page.html", keep_traces=True)
    assert "visionpulse explore page.traces --sample dense-0 --view '" in page.read_text()
    assert vpa.TraceStore(tmp_path / "page.traces")["dense-0"].data_hash == second.data_hash
    explore(first, store=tmp_path / "page.traces").save(tmp_path / "other.html", keep_traces=True)
    assert not (tmp_path / "other.traces").exists()  # they are in a store already
    with pytest.raises(ValueError, match="id"):
        explore(first.with_meta({"question": ""})).save(tmp_path / "nameless.html", keep_traces=True)
    assert not (tmp_path / "nameless.html").exists()
