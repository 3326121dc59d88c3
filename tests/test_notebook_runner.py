"""The notebook runner, on notebooks written here."""

import json
import re
import shutil
import sys

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from visionpulse_analysis.cli.notebooks import run as notebooks

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


def test_a_parameter_out_takes_the_executed_copy_along(folder):
    result = notebooks.run("works", {"out": "mine"}, folder=folder, cwd=folder.parent, out=folder.parent / "other")
    assert result.path == folder.parent / "mine" / "executed" / "00_works.ipynb"
    assert (folder.parent / "mine" / "seen.json").exists() and not (folder.parent / "other").exists()


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


def test_run_all_checks_every_notebook_first_and_stops_at_a_failure(folder, tmp_path):
    lines, options = [], {"folder": folder, "out": tmp_path / "results", "jobs": 1}
    with pytest.raises(ValueError, match="unknown parameter 'm'"):
        notebooks.run_all({"m": 1}, **options, report=lines.append)
    assert not (tmp_path / "results").exists() and lines == []
    with pytest.raises(notebooks.NotebookError, match="01_fails"):
        notebooks.run_all({"n": 1}, **options, report=lines.append)
    assert not any("01_fails" in line or "all" in line for line in lines)


@pytest.mark.parametrize("jobs", [1, 2])
def test_run_all_reports_the_times(folder, tmp_path, jobs):
    lines: list[str] = []
    shutil.copy(folder / "00_works.ipynb", folder / "01_fails.ipynb")
    results = notebooks.run_all(folder=folder, out=tmp_path / "results", jobs=jobs, report=lines.append)
    assert [result.name for result in results] == ["00_works", "01_fails"]
    assert sorted(re.sub(r"\d+\.\d", "T", line) for line in lines[:2]) == ["00_works: T s", "01_fails: T s"]
    assert re.fullmatch(r"all 2 notebooks: \d+\.\d s", lines[2])


def test_side_by_side_the_longest_start_after_the_first(folder, tmp_path, monkeypatch):
    for name, settings in {
        "01_fails": {},
        "02_long": {"minutes": 1},
        "04_longer": {"minutes": 2.5},
        "03_short": {},
    }.items():
        notebook = new_notebook(cells=[TITLE, PARAMETERS], metadata={"visionpulse": settings})
        nbformat.write(notebook, folder / f"{name}.ipynb")
    order = []
    monkeypatch.setattr(notebooks, "call_each", lambda f, plans, jobs, *_: order.extend(plans) or enumerate([]))
    notebooks.run_all(folder=folder, out=tmp_path, report=str, jobs=2)
    assert [plan.source.stem for plan in order] == ["00_works", "04_longer", "02_long", "01_fails", "03_short"]


def test_a_model_of_ones_own_is_loaded_by_one_notebook_at_a_time(folder, tmp_path, monkeypatch):
    named = new_code_cell('model = "scenes"\nout = "figures"', metadata={"tags": ["parameters"]})
    for path in folder.iterdir():
        nbformat.write(new_notebook(cells=[TITLE, named]), path)
    asked = []
    monkeypatch.setattr(notebooks, "call_each", lambda f, plans, jobs, *_: asked.append(jobs) or enumerate([]))
    monkeypatch.setattr(notebooks, "available_cores", lambda: 8)
    notebooks.run_all(folder=folder, out=tmp_path, report=str)
    assert asked == [4]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    notebooks.run_all({"model": str(tmp_path / "mine")}, folder=folder, out=tmp_path, report=str)
    assert asked == [4]
    with pytest.raises(ValueError, match="jobs of 1 or more, got 0"):
        notebooks.run_all(folder=folder, out=tmp_path, jobs=0)
