"""The parameters cell: what is read from it, and which values are refused."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from visionpulse_analysis.cli.notebooks.parameters import check_parameters, read_parameters

CELL = """\
model = "scenes"  # bundled, a folder or a hub id
n_samples = 20  # scenes, at least 1
budget = 0.05  # share of patches, 0 to 1
layers = [1, 2]
record = True
anything = None
layer: int | None = 5
scale: Literal["shared", "step"] = "shared"
sizes: list[int] | None = None
"""


def notebook_with(*cells: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell(cell, metadata={"tags": ["parameters"]}) for cell in cells])


@pytest.fixture
def known():
    return read_parameters(notebook_with(CELL))


def test_names_and_defaults_are_those_of_the_executed_cell(known):
    scope = {}
    exec("from typing import Literal\n" + CELL, scope)
    assert {name: parameter.default for name, parameter in known.items()} == {name: scope[name] for name in known}
    assert list(known) == [line.split()[0].rstrip(":") for line in CELL.splitlines()]


@pytest.mark.parametrize(
    ("name", "given", "seen"),
    [
        ("model", "7", "7"),
        ("model", "'7'", "'7'"),
        ("model", Path("models") / "big", "models/big"),
        ("n_samples", "7", 7),
        ("budget", "1e-2", 0.01),
        ("budget", 1, 1.0),
        ("layers", "[3]", [3]),
        ("layers", (3, 4), [3, 4]),
        ("record", "False", False),
        ("anything", "all", "all"),
        ("anything", "3", 3),
        ("layer", "None", None),
        ("layer", 0, 0),
        ("scale", "step", "step"),
        ("sizes", "(1, 2)", [1, 2]),
    ],
)
def test_values_that_fit(known, name, given, seen):
    value = check_parameters(known, {name: given})[name]
    assert value == seen
    assert type(value) is type(seen)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("model", 7, "str"),
        ("n_samples", "many", "int"),
        ("n_samples", 7.0, "int"),
        ("n_samples", True, "int"),
        ("n_samples", None, "int"),
        ("budget", "half", "float"),
        ("layers", 3, "list"),
        ("layers", [np.float64(3)], "list"),
        ("record", 1, "bool"),
        ("record", "false", "bool"),
        ("layer", "all", "int or None"),
        ("scale", "absolute", "'shared' or 'step'"),
        ("anything", np.ones(2), "any literal"),
        ("sizes", ["1"], "a list of int or None"),
        ("budget", float("nan"), "float"),
    ],
)
def test_values_that_do_not_fit(known, name, given, expected):
    with pytest.raises(ValueError, match=f"parameter '{name}': got .*, expected {expected} "):
        check_parameters(known, {name: given})


def test_an_unknown_name_lists_the_known_ones_with_defaults_and_the_closest(known):
    with pytest.raises(ValueError, match=r"unknown parameter 'n_sample'\. Did you mean 'n_samples'\?") as caught:
        check_parameters(known, {"n_sample": 3})
    for parameter in known.values():
        assert f"{parameter.name} = {parameter.default!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("n = 3\ntwice = n * 2", "line 2 .*twice = n"),
        ("import os", "line 1 .*import os"),
        ("a = b = 1", "line 1"),
        ("n: int", "line 1"),
        ("n: Path = 'x'", "annotation 'Path'"),
        ("n: int = 'x'", "'n': its default 'x' is not int"),
        ("n = 1\nn = 2", "'n' is set twice"),
    ],
)
def test_cells_that_hold_more_than_literals(cell, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(notebook_with(cell))


@pytest.mark.parametrize("cells", [(), ("n = 1", "m = 1")])
def test_exactly_one_parameters_cell(cells):
    with pytest.raises(ValueError, match=f"exactly one .* found {len(cells)}"):
        read_parameters(notebook_with(*cells))
