"""From a figure alone to the same figure: its provenance names the picture, the process, and the command."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from figure_gallery import GALLERY
from PIL import Image
from typer.testing import CliRunner

from visionpulse_analysis import _ledger, notebooks
from visionpulse_analysis.cli import app
from visionpulse_analysis.figures import provenance, read_provenance, save
from visionpulse_analysis.studies.samples import image_files


def told(figure):
    done = CliRunner().invoke(app, ["provenance", str(figure), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["07", pytest.param("06", marks=pytest.mark.slow)])
def test_the_command_in_a_figure_draws_the_same_bytes(name, tmp_path):
    notebooks.run(name, {"seed": 1} if name == "06" else {}, out=tmp_path / "first", fast=True)
    figures = sorted((tmp_path / "first").glob("*.png"))
    [command] = {told(figure)["command"] for figure in figures}
    *variables, program = shlex.split(command)[: 1 + command.count("OMP_NUM_THREADS=")]
    words = shlex.split(command)[1 + len(variables) : -1]
    environment = {**os.environ, **dict(one.split("=") for one in variables), "VISIONPULSE_CACHE": str(tmp_path / "no")}
    script = "from visionpulse_analysis.cli import app; app()"
    again = [sys.executable, "-c", script, *words, str(tmp_path / "again")]
    subprocess.run(again, env=environment, cwd=notebooks.ROOT, check=True, capture_output=True)
    assert program == "visionpulse" and figures
    for figure in figures:
        for ending in (".png", ".pdf", ".svg"):
            first = figure.with_suffix(ending)
            assert first.read_bytes() == (tmp_path / "again" / first.name).read_bytes(), first.name


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
    from visionpulse_analysis.models import _facts

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
