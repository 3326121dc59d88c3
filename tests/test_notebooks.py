"""The rules every notebook of the project keeps."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from in_process import execute_in_process, run_in_process
from PIL import Image

import visionpulse_analysis as vpa
from visionpulse_analysis.cli.notebooks import execution
from visionpulse_analysis.cli.notebooks import run as notebooks
from visionpulse_analysis.cli.notebooks.parameters import check_parameters, read_parameters
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.figures.saving import drawn_hash

OURS = sorted(notebooks.FOLDER.glob("*.ipynb"))
IN_THIS_PROCESS = {"01", "02", "03", "04", "05", "07"}  # the imports of a kernel take longer than many a notebook
UNTOLD = {"out", "seed", "trust_remote_code", "batch_size", "workers", "block"}  # a place, a key, or no effect
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


@each_notebook
def test_a_notebook_names_the_modules_of_its_question_as_all_notebooks_do(path):
    """`figures as draw`, all others by their own names; a call says by which module it is made."""
    imports = [node for source in code(path) for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    modules = {str(node.module) for node in imports}
    folders = [name for name in modules if re.fullmatch(r"visionpulse_analysis\.studies\.(?!shared)\w+", name)]
    assert len(folders) == 1
    for folder in folders:
        assert not [name for name in modules if name.startswith(f"{folder}.")], "import the module, not what is in it"
    assert {(one.name, one.asname) for node in imports for one in node.names if one.asname} <= {("figures", "draw")}


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
def test_a_notebook_takes_a_model_and_images_of_ones_own(name, photos, silent_folder, tmp_path, capsys):
    notebook = nbformat.read(notebooks.find(name), as_version=4)
    known = read_parameters(notebook)
    own = {"images": str(photos)} if "images" in known else {"image": str(photos / "photo 0.png")}
    # Random weights hardly depend on the image: what counts as a change is lowered so that something does.
    own |= {"level": 1e-6} if "level" in known else {}
    given = {"model": str(silent_folder), "question": "what is on the left ?", "max_new_tokens": 16, **own}
    fast = notebook.metadata["visionpulse"]["fast"]
    run_in_process(name, **check_parameters(known, {**fast, **given, "out": str(tmp_path / "out")}))
    assert list((tmp_path / "out").glob("*.png"))
    assert "of your own: what they show is not known" in capsys.readouterr().out


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_in_its_fast_mode_and_every_figure_tells_how_it_was_drawn(path, fast, tmp_path, monkeypatch):
    """Every parameter that its notebook takes, its seed, and a hash of its data."""
    if path.stem[:2] in IN_THIS_PROCESS:
        monkeypatch.setattr(execution, "execute", execute_in_process)
        folder = notebooks.run(path.stem, out=tmp_path, fast=True).path.parents[1]
    else:
        folder = fast(path.stem).parents[1]
    told = set(read_parameters(nbformat.read(path, as_version=4))) - UNTOLD
    drawn = [one for one in folder.rglob("*.png") if not one.stem.endswith("_image")]
    assert drawn
    for figure in drawn:
        found = read_provenance(figure)
        assert not told - set(found["parameters"]), f"{figure.name} does not say these parameters"
        assert found["seed"] is not None and found["data_hash"], figure.name
        assert found["drawn"] == drawn_hash(np.asarray(Image.open(figure).convert("RGBA"))), figure.name
        assert found["made_by"]["notebook"] == path.stem
    assert len({read_provenance(figure)["drawn"] for figure in drawn}) == len(drawn), "one hash, two pictures"
