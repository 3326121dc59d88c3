"""From a figure alone to the same figure: its provenance names the picture, the process, and the command."""

import json
import shlex
import subprocess

import numpy as np
import pytest
from exchanged import own
from figure_gallery import GALLERY
from PIL import Image
from typer.testing import CliRunner

from visionpulse_analysis import figures
from visionpulse_analysis._util import ledger as _ledger
from visionpulse_analysis.cli import app
from visionpulse_analysis.cli.notebooks import run as notebooks
from visionpulse_analysis.experiments.samples import image_files
from visionpulse_analysis.explorer import explore
from visionpulse_analysis.figures import read_provenance, save
from visionpulse_analysis.figures import saving as provenance
from visionpulse_analysis.traces import traces_hash
from visionpulse_analysis.traces.store import TraceStore


def told(figure):
    done = CliRunner().invoke(app, ["provenance", str(figure), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_command_in_a_figure_draws_the_same_bytes(fast, tmp_path, monkeypatch):
    """Run again with no result kept, and with sets in another order."""
    drawn = sorted(fast("00").parents[1].glob("*.png"))
    [command] = {told(figure)["command"] for figure in drawn}
    count = 1 + command.count("OMP_NUM_THREADS=")
    *variables, program = shlex.split(command)[:count]
    again = dict(one.split("=") for one in variables)
    for name, value in {**again, "VISIONPULSE_CACHE": str(tmp_path / "no"), "PYTHONHASHSEED": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(notebooks.ROOT)
    done = CliRunner().invoke(app, [*shlex.split(command)[count:-1], str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert program == "visionpulse" and len(drawn) >= 3
    for figure in drawn:
        for ending in (".png", ".pdf", ".svg"):
            first = figure.with_suffix(ending)
            assert first.read_bytes() == (tmp_path / "again" / first.name).read_bytes(), first.name


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A folder to work in, with a store of a dense trace and two of others: the second differs from the third alone."""
    store = TraceStore(tmp_path / "of mine", mode="a")
    for id, tokens in (("dense", None), ("-one", None), ("two", ["a", "b", "c", "d", "e"])):
        trace = own(pruned=id != "dense", tokens=tokens)
        told = {} if id != "dense" else {"pruner": None, "finished": True}
        store.add(trace.with_meta({**trace.meta, **told, "id": id}))
    monkeypatch.chdir(tmp_path)


PICTURES = "--layer 7 --level 50 --step 1 --step 2 --threshold 0.01 --out OUT"
VIEW = "--pruned -one --sample dense --view step=2&layer=7 --figure OUT/view"


@pytest.mark.parametrize("words", [["explore", "of mine", *VIEW.split()], ["pictures", "of mine", *PICTURES.split()]])
def test_the_command_in_a_figure_of_a_command_draws_the_same_bytes(stored, tmp_path, words):
    def run(*given):
        done = CliRunner().invoke(app, list(given))
        assert done.exit_code == 0, done.output

    run(*(word.replace("OUT", "first") for word in words))
    [command] = {told(path)["command"] for path in (tmp_path / "first").glob("*.p*")}
    _, *again = shlex.split(command.partition("OMP_NUM_THREADS=")[2].partition(" ")[2] or command)
    run(*again)
    first, second = tmp_path / "first", tmp_path / "again"
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_the_data_hash_of_a_view_covers_every_trace_in_it(stored, tmp_path, monkeypatch):
    store, given = TraceStore(tmp_path / "of mine"), []
    monkeypatch.setattr(figures, "save", lambda *about, **options: given.append(options["data_hash"]) or [])
    for others in ([], ["-one"], ["two"]):
        words = [word for other in others for word in ("--pruned", other)]
        done = CliRunner().invoke(app, ["explore", "of mine", "--sample", "dense", *words, "--figure", "a"])
        assert done.exit_code == 0, done.output
        shown = [store[id] for id in ("dense", *others)]
        explore(*shown).figure("b")
        assert given[-2:] == [traces_hash(shown)] * 2
    assert len(given) == 6 and len(set(given)) == 3


def test_no_two_pictures_share_a_hash_and_one_picture_has_one(tmp_path):
    hashes = {}
    for name in ("mass", "kept", "scatter", "overlay"):
        first = read_provenance(save(GALLERY[name](), name, folder=tmp_path / "a")[0])
        pixels = np.asarray(Image.open(tmp_path / "a" / f"{name}.png").convert("RGBA"))
        assert first["drawn"] == provenance.drawn_hash(pixels)
        hashes.setdefault(first["drawn"], []).append(pixels)
    assert len(hashes) == 4
    fig = GALLERY["mass"]()
    fig.axes[0].lines[0].set_ydata(fig.axes[0].lines[0].get_ydata() * 0.97)  # nothing but a curve
    other = read_provenance(save(fig, "mass", folder=tmp_path / "b", data_hash="same")[0])
    assert other["drawn"] not in hashes
    assert read_provenance(save(GALLERY["mass"](), "mass", folder=tmp_path / "c")[0])["drawn"] in hashes


def test_the_process_is_told(tmp_path, vlm, monkeypatch):
    monkeypatch.setattr(_ledger, "_alive", [])
    from visionpulse_analysis.models.loading import _facts

    _ledger.note_object("models", vlm, _facts)
    before = read_provenance(save(GALLERY["mass"](), "a", folder=tmp_path)[0])["process"]
    assert before["threads"] >= 1 and before["models"][0]["dtype"] == "float32"
    assert {"device", "revision", "image_processor"} <= set(before["models"][0])
    monkeypatch.setattr(vlm.image_processor, "image_mean", [0.1, 0.2, 0.3])
    after = read_provenance(save(GALLERY["mass"](), "a", folder=tmp_path)[0])["process"]
    assert after["models"][0]["image_processor"] != before["models"][0]["image_processor"]


def test_the_content_of_pictures_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(_ledger, "_noted", {})
    hashes = []
    for value in (0, 1):
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / "a.png")
        image_files(tmp_path)
        hashes.append(_ledger.noted()["images"][tmp_path.name])
    assert hashes[0] != hashes[1]


def test_untracked_files_and_edited_notebooks_make_a_commit_modified(tmp_path, monkeypatch):
    package = tmp_path / "visionpulse_analysis"
    for folder in (package, tmp_path / "notebooks"):
        folder.mkdir()
        (folder / "a.py").write_text("1")

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(provenance, "_PACKAGE", package.resolve())
    assert not provenance._commit().endswith("-modified")
    (tmp_path / "figure.png").write_text("a figure is no code")
    assert not provenance._commit().endswith("-modified")
    (package / "new.py").write_text("2")
    assert provenance._commit().endswith("-modified")
    (package / "new.py").unlink()
    (tmp_path / "notebooks" / "a.py").write_text("2")
    assert provenance._commit().endswith("-modified")
