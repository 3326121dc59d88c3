"""The README says what the notebooks found, and nothing else."""

import re
from pathlib import Path

import pytest

from visionpulse_analysis.studies.findings_table import BEGIN, END, HEADLINES, findings_table, with_table

ROOT = Path(__file__).parents[1]


def test_the_table_is_that_of_the_figures():
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, findings_table()) == readme


def test_every_notebook_is_in_the_table():
    assert list(HEADLINES) == [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    table = findings_table()
    assert all(f"notebooks/{name}.ipynb" in table for name in HEADLINES)


def test_every_picture_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', readme)
    assert pictures and all((ROOT / picture).exists() for picture in pictures)


def test_lost_marks_are_an_error():
    with pytest.raises(ValueError, match="lost its marks"):
        with_table("no marks", "table")
    assert with_table(f"a\n{BEGIN} x -->\nold\n{END}\nb", "new") == f"a\n{BEGIN} x -->\nnew\n{END}\nb"
