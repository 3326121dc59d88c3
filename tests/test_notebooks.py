"""The notebook runner, on notebooks written here, and the rules every notebook of the project keeps."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

import visionpulse_analysis as vpa
from visionpulse_analysis import notebooks
from visionpulse_analysis.notebook_parameters import read_parameters

TITLE = new_markdown_cell("# Does it run?")
PARAMETERS = new_code_cell('n = 3\nlayer: int | None = None\nout = "figures"', metadata={"tags": ["parameters"]})
WRITE = new_code_cell(
    "import json, pathlib, sys\n"
    "pathlib.Path(out).mkdir(parents=True, exist_ok=True)\n"
    "seen = dict(n=n, layer=layer, out=out, cwd=str(pathlib.Path.cwd()), python=sys.executable)\n"
    "_ = pathlib.Path(out, 'seen.json').write_text(json.dumps(seen))"
)
BREAK = new_code_cell("1 / 0  # on purpose")


@pytest.fixture
def folder(tmp_path):
    """Two throw-away notebooks: one that works, with a fast mode, and one that fails in its third cell."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    works = new_notebook(cells=[TITLE, PARAMETERS, WRITE], metadata={"visionpulse": {"fast": {"n": 1}}})
    nbformat.write(works, folder / "00_works.ipynb")
    nbformat.write(new_notebook(cells=[TITLE, PARAMETERS, BREAK, WRITE]), folder / "01_fails.ipynb")
    return folder


def run(name, folder, parameters=None, **options):
    """Run in the temporary folder; return the result and what the notebook saw."""
    result = notebooks.run(name, parameters, folder=folder, cwd=folder.parent, **options)
    return result, json.loads(next(folder.parent.rglob("seen.json")).read_text())


def test_run_executes_a_copy_and_leaves_the_source_alone(folder):
    before = (folder / "00_works.ipynb").read_bytes()
    result, seen = run("works", folder, {"n": "7", "layer": 2}, out=folder.parent / "results")
    assert (seen["n"], seen["layer"]) == (7, 2)
    assert result.path == folder.parent / "results" / "executed" / "00_works.ipynb"
    executed = nbformat.read(result.path, as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert [path.name for path in result.path.parent.iterdir()] == ["00_works.ipynb"]
    assert (folder / "00_works.ipynb").read_bytes() == before
    assert result.seconds > 0


def test_the_executed_copy_is_signed_where_that_can_be_kept(folder, tmp_path, monkeypatch):
    signed, _ = run("works", folder, out=tmp_path / "a")
    assert NotebookNotary().check_signature(nbformat.read(signed.path, as_version=4))
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "file" / "jupyter"))
    result, _ = run("works", folder, out=tmp_path / "b")
    assert result.path.exists()


def test_the_kernel_is_this_python_in_the_given_folder_with_a_relative_out(folder, tmp_path, monkeypatch):
    stray = tmp_path / "jupyter" / "kernels" / "python3"
    stray.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "stray", "language": "python"}
    (stray / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    _, seen = run("00", folder, out=tmp_path / "results")
    assert seen["python"] == sys.executable
    assert seen["cwd"] == str(tmp_path)
    assert seen["out"] == "results"


def test_fast_values_lie_beneath_the_given_ones(folder, tmp_path):
    assert run("works", folder, out=tmp_path / "a")[1]["n"] == 3
    assert run("works", folder, out=tmp_path / "a", fast=True)[1]["n"] == 1
    assert run("works", folder, {"n": 5}, out=tmp_path / "a", fast=True)[1]["n"] == 5


def test_fast_results_do_not_replace_real_ones(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FIGURES", tmp_path / "figures")
    result, seen = run("works", folder, fast=True)
    assert result.path == tmp_path / "figures" / "fast" / "executed" / "00_works.ipynb"
    assert seen["out"] == "figures/fast"


@pytest.mark.parametrize("parameters", [{"m": 1}, {"n": "many"}])
def test_a_wrong_parameter_raises_before_anything_is_written(folder, tmp_path, parameters):
    with pytest.raises(ValueError, match=r"00_works\.ipynb: .*parameter"):
        notebooks.run("works", parameters, folder=folder, out=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_wrong_name_in_the_fast_values_raises(folder, tmp_path):
    notebook = nbformat.read(folder / "00_works.ipynb", as_version=4)
    notebook.metadata["visionpulse"]["fast"] = {"samples": 1}
    nbformat.write(notebook, folder / "00_works.ipynb")
    with pytest.raises(ValueError, match="unknown parameter 'samples'"):
        notebooks.run("works", folder=folder, out=tmp_path / "results", fast=True)


@pytest.mark.parametrize("parameters", [{}, {"n": 1}])
def test_a_failing_cell_is_named_and_the_partial_copy_kept(folder, tmp_path, monkeypatch, parameters):
    nbformat.write(new_notebook(cells=[PARAMETERS, BREAK]), folder / "02_without_out.ipynb")
    monkeypatch.setattr(notebooks, "FIGURES", tmp_path / "results")
    with pytest.raises(notebooks.NotebookError) as caught:
        notebooks.run("fails", parameters, folder=folder)
    assert "01_fails.ipynb failed in cell 3, `1 / 0  # on purpose`: ZeroDivisionError" in str(caught.value)
    partial = tmp_path / "results" / "executed" / "01_fails.failed.ipynb"
    assert str(partial) in str(caught.value)
    assert "ZeroDivisionError" in partial.read_text()
    assert not partial.with_name("01_fails.ipynb").exists()


def test_a_dying_kernel_is_one_clear_error(folder, tmp_path):
    die = new_code_cell("import os\nos._exit(1)")
    nbformat.write(new_notebook(cells=[PARAMETERS, die]), folder / "02_dies.ipynb")
    with pytest.raises(notebooks.NotebookError, match=r"kernel of 02_dies\.ipynb died"):
        notebooks.run("dies", folder=folder, out=tmp_path / "results")
    assert not (tmp_path / "results" / "executed" / "02_dies.ipynb").exists()


@pytest.mark.parametrize("name", ["00", "works", "00_works", "00_works.ipynb"])
def test_find(folder, name):
    assert notebooks.find(name, folder) == folder / "00_works.ipynb"


def test_find_names_the_closest(folder):
    with pytest.raises(ValueError, match=r"'wroks'\. Did you mean '00_works'\? Available: 00_works, 01_fails"):
        notebooks.find("wroks", folder)


def test_a_folder_without_notebooks_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="come with the repository"):
        notebooks.list_notebooks(tmp_path)


def test_run_all_checks_every_notebook_first_and_reports_the_times(folder, tmp_path):
    lines = []
    with pytest.raises(ValueError, match="unknown parameter 'm'"):
        notebooks.run_all({"m": 1}, folder=folder, out=tmp_path / "results", report=lines.append)
    assert not (tmp_path / "results").exists()

    with pytest.raises(notebooks.NotebookError, match="01_fails"):
        notebooks.run_all({"n": 1}, folder=folder, out=tmp_path / "results", report=lines.append)
    assert len(lines) == 1

    (folder / "01_fails.ipynb").unlink()
    results = notebooks.run_all(folder=folder, out=tmp_path / "results", report=lines.append)
    assert [result.name for result in results] == ["00_works"]
    assert re.fullmatch(r"00_works: \d+\.\d s", lines[1])
    assert re.fullmatch(r"all 1 notebooks: \d+\.\d s", lines[2])


# The project's own notebooks

OURS = sorted(notebooks.FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebooks_are_there_and_named_for_reading_order():
    assert notebooks.list_notebooks() == OURS
    assert {"00_quickstart", "01_step_dependence"} <= {path.stem for path in OURS}


@each_notebook
def test_a_notebook_asks_one_question_in_few_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) <= 25
    assert cells[0].cell_type == "markdown"
    assert re.match(r"# .+\?$", cells[0].source.splitlines()[0]), "the first line is the title, a question"


@each_notebook
def test_a_notebook_has_parameters_and_fast_values(path):
    notebook = nbformat.read(path, as_version=4)
    known = read_parameters(notebook)
    fast = notebook.metadata["visionpulse"]["fast"]
    assert set(fast) <= set(known)
    assert {"seed", "out"} <= set(known)


@each_notebook
def test_a_notebook_is_committed_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@each_notebook
@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"^\s*(async\s+)?(def|class)\s", id="def or class"),
        pytest.param(r"^\s*[!%]", id="shell or magic"),
        pytest.param(r"sys\.path", id="sys.path"),
        pytest.param(r"""["'](/|~|[A-Za-z]:\\)""", id="absolute path"),
    ],
)
def test_a_notebook_only_calls_the_package(path, pattern):
    for source in code(path):
        assert not re.search(pattern, source, re.MULTILINE), f"this belongs in the package: {source}"


@pytest.fixture
def photos(tmp_path):
    """Two small images of one's own, with nothing known about them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, shape in enumerate(((64, 96, 3), (80, 56, 3))):
        noise = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"photo {number}.png")
    return folder


@pytest.fixture(scope="session")
def silent_folder(scenes_folder, tmp_path_factory):
    """The random model without its bad habit of writing image placeholders, which no trained model has."""
    model = vpa.load(str(scenes_folder)).model
    for token in (model.config.image_token_id, model.config.video_token_id):
        model.lm_head.weight.data[token] = 0
    folder = tmp_path_factory.mktemp("models") / "silent"
    shutil.copytree(scenes_folder, folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00", "01", "02", "03", "04", "05"])
def test_a_notebook_takes_a_model_and_images_of_ones_own(name, photos, silent_folder, tmp_path):
    path = notebooks.find(name)
    known = read_parameters(nbformat.read(path, as_version=4))
    own = {"images": str(photos)} if "images" in known else {"image": str(photos / "photo 0.png")}
    # Random weights hardly depend on the image: what counts as a change is lowered so that something does.
    own |= {"level": 1e-6} if "level" in known else {}
    given = {"model": str(silent_folder), "question": "what is on the left ?", "max_new_tokens": 16, **own}
    done = notebooks.run(name, given, out=tmp_path / "out", fast=True)
    assert list((tmp_path / "out").glob("*.png"))
    assert "of your own: what they show is not known" in done.path.read_text()


@each_notebook
def test_a_notebook_runs_in_its_fast_mode_and_draws(path, tmp_path):
    notebooks.run(path.stem, out=tmp_path, fast=True)
    assert list(tmp_path.rglob("*.png"))
