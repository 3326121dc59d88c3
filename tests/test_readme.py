"""The README says what the notebooks found, and nothing else."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.studies.shared import readme_table
from visionpulse_analysis.studies.shared.readme_table import BEGIN, END, between

ROOT = Path(__file__).parents[1]

README = (ROOT / "README.md").read_text()


@pytest.fixture
def beside_the_data(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(beside_the_data):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2 and abs(names["blind"].logprobs - names["head"].logprobs).max() > 0
    assert names["dense"].answer == "r5 c5" and names["sampled"].meta["sample"]["top_p"] == 0.95
    assert names["store"].ids == ["first"] and (beside_the_data / "page.html").exists()


@pytest.mark.slow
def test_the_commands_of_the_readme_that_need_nothing_else_run_as_they_stand(beside_the_data):
    lines = [line[2:].partition(" #")[0] for line in README.splitlines() if line.startswith("$ visionpulse ")]
    own = [line for line in lines if re.search(r"data/example\.png|runs/mine|pruners$", line)]
    assert len(own) >= 5
    for line in own:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert {"page.html", "steps.csv", "boxes.json"} <= {path.name for path in beside_the_data.iterdir()}


def test_readme_and_findings_are_those_of_the_figures():
    for page, text in readme_table.rewritten().items():
        assert page.read_text() == text, "run `python -m visionpulse_analysis.studies.shared.readme_table`"


def test_every_picture_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', readme)
    assert pictures and all((ROOT / picture).exists() for picture in pictures)


def test_lost_marks_are_an_error():
    with pytest.raises(ValueError, match="lost its marks"):
        between("no marks", BEGIN, END, "table")
    assert between(f"a\n{BEGIN} x -->\nold\n{END}\nb", BEGIN, END, "new") == f"a\n{BEGIN} x -->\nnew\n{END}\nb"
