"""Figure files: the same bytes every time, whole or not at all, and carrying where they come from."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from figure_gallery import GALLERY, IMAGE
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox
from PIL import Image

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE, SINGLE, new_figure, read_provenance, save

DETAILS: dict[str, Any] = {
    "parameters": {"model": "scenes", "text": 'a (b) \\) "c"\n</svg> & é 中', "layer": np.int64(3)},
    "seed": 7,
    "data_hash": "ab12",
    "numbers": {"r": np.float32(0.5), "interval": (0.25, 0.75), "missing": None},
}


def test_provenance_comes_back_from_every_format(tmp_path):
    paths = save(GALLERY["mass"](), "01_mass", folder=tmp_path, **DETAILS)
    assert [path.name for path in paths] == ["01_mass.png", "01_mass.pdf", "01_mass.svg"]
    records = [read_provenance(path) for path in paths]
    assert records[0] == records[1] == records[2]
    record = records[0]
    assert record["parameters"] == {**DETAILS["parameters"], "layer": 3}
    assert record["numbers"] == {"r": 0.5, "interval": [0.25, 0.75], "missing": None}
    assert (record["figure"], record["seed"], record["data_hash"]) == ("01_mass", 7, "ab12")
    assert record["versions"]["matplotlib"] == matplotlib.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "visionpulse_analysis"} <= set(record["versions"])


def test_provenance_names_the_commit(tmp_path):
    root = Path(figures.__file__).parents[2]
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    git = subprocess.run(words, capture_output=True, text=True, check=False)
    commit = read_provenance(save(new_figure()[0], "a", folder=tmp_path)[0])["commit"]
    if git.returncode or not (root / ".git").exists():
        assert commit is None
    else:
        assert commit.removesuffix("-modified") == git.stdout.strip()


SAVE = """
import sys; sys.path.insert(0, sys.argv[1])
from test_figures_files import DETAILS, GALLERY, save
for name in ("page", "mass", "scatter", "matrix"):  # text, pictures, colour bars, markers, dots as a picture
    save(GALLERY[name](), name, folder=sys.argv[2], **DETAILS)
"""


def test_bytes_are_the_same_in_another_process(tmp_path):
    runs = []
    for run in ("1", "2"):  # side by side, with another order of sets each
        environment = {**os.environ, "PYTHONHASHSEED": run, "PYTHONPATH": os.pathsep.join(sys.path)}
        words = [sys.executable, "-c", SAVE, str(Path(__file__).parent), str(tmp_path / run)]
        runs.append(subprocess.Popen(words, env=environment))
        time.sleep(1.1)  # dates in files count seconds
    assert [run.wait() for run in runs] == [0, 0]
    first = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "2").iterdir()}
    assert len(first) == 12 and first.keys() == second.keys()
    assert [name for name in sorted(first) if first[name] != second[name]] == []


@pytest.mark.parametrize("kind", ["mass", "page", "overlay"])
def test_bytes_are_the_same_when_one_figure_is_shown_and_saved_twice(tmp_path, kind):
    fig = GALLERY[kind]()
    before = fig.canvas, fig.dpi, fig.get_layout_engine()
    first = [path.read_bytes() for path in save(fig, "a", folder=tmp_path)]
    assert (fig.canvas, fig.dpi, fig.get_layout_engine()) == before
    assert fig._repr_png_().startswith(b"\x89PNG")
    assert [path.read_bytes() for path in save(fig, "a", folder=tmp_path)] == first


def test_bytes_are_the_same_when_a_tight_figure_is_saved_again(tmp_path):
    fig = Figure((3, 2), layout="tight")
    fig.subplots(1, 2)[0].set(xlabel="step", ylabel="mass", ylim=(0, 1 / 3))
    first = [path.read_bytes() for path in save(fig, "a", folder=tmp_path)]
    assert [path.read_bytes() for path in save(fig, "a", folder=tmp_path)] == first


@pytest.mark.parametrize("kind", ["page", "matrix"])
def test_the_last_digits_of_the_layout_do_not_reach_the_bytes(tmp_path, monkeypatch, kind):
    """The layout's solver adds up in the order of memory addresses: its results differ by some 1e-15."""
    plain = [path.read_bytes() for path in save(GALLERY[kind](), "a", folder=tmp_path)]
    rng, execute = np.random.default_rng(0), ConstrainedLayoutEngine.execute

    def noisy(engine, fig):
        execute(engine, fig)
        for part in fig.subfigs:
            part.bbox_relative.set_points(part.bbox_relative.get_points() + rng.normal(0, 1e-14, (2, 2)))
        for ax in fig.axes:
            place = ax.get_position(original=True).get_points() + rng.normal(0, 1e-14, (2, 2))
            ax.set_position(Bbox(place), which="both")
            ax.set_in_layout(True)

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", noisy)
    for _ in range(3):
        assert [path.read_bytes() for path in save(GALLERY[kind](), "a", folder=tmp_path)] == plain


def test_png_has_the_width_of_a_column_at_300_dpi(tmp_path):
    for width in (SINGLE, DOUBLE):
        path = save(new_figure(width, 2)[0], "a", folder=tmp_path)[0]
        with Image.open(path) as image:
            assert image.size == (round(width * 300), 600)


def test_pdf_embeds_truetype_fonts_and_svg_needs_none(tmp_path):
    _, pdf, svg = save(GALLERY["mass"](), "a", folder=tmp_path)
    assert re.search(rb"/FontFile2 \d+ 0 R", pdf.read_bytes())
    assert b"/Type3" not in pdf.read_bytes()
    assert b"<text" not in svg.read_bytes() and b"font-family" not in svg.read_bytes()


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "/a", "a\\b", "a b", "a.png", "a\n", None])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="figure name"):
        save(new_figure()[0], name, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, object(), {1, 2}])
def test_numbers_that_json_lacks_are_refused_before_writing(tmp_path, value):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        save(new_figure()[0], "a", folder=tmp_path / "new", numbers={"r": value})
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_old_files_whole(tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in save(GALLERY["mass"](), "a", folder=tmp_path)}
    write = Path.write_bytes

    def full(path, content):
        write(path, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(GALLERY["kept"](), "a", folder=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"hello", "no PNG, PDF or SVG"),
        ("empty.png", b"", "no PNG, PDF or SVG"),
        ("a.png", b"\x89PNG\r\n\x1a\n junk", "damaged PNG"),
        ("a.pdf", b"%PDF-1.4 /Keywords (by hand)", "carries no provenance"),
        ("b.pdf", b"%PDF-1.4", "carries no provenance"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'>", "damaged SVG"),
        ("b.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "carries no provenance"),
    ],
)
def test_a_file_without_provenance_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_provenance(tmp_path / name)
    assert name in str(error.value)


def test_a_foreign_or_missing_png_is_named(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="carries no provenance"):
        read_provenance(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_provenance(tmp_path / "b.png")


def test_importing_figures_loads_no_model_library_and_no_window():
    unwanted = "{'torch', 'transformers', 'matplotlib.pyplot'}"
    code = f"import sys, visionpulse_analysis.figures; print(*{unwanted} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
