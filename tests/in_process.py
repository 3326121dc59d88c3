"""The code of a notebook, run in this process: without the seconds that a kernel takes to import everything."""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter

from visionpulse_analysis.cli.notebooks import run as notebooks


def run_in_process(name, **given):
    """Run the code of a notebook with these parameters; what it has at its end."""
    return _run(notebooks.find(name), given)


def execute_in_process(
    source: Path, target: Path, parameters: Mapping[str, Any], cwd: Path, environment: Mapping[str, str], tell: Any
) -> None:
    """In place of `cli.notebooks.execution.execute`: with what cells show made as for a kernel, and without a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for name, value in environment.items():
            patch.setenv(name, value)
        _run(source, parameters, DisplayFormatter().format)


def _run(source: Path, given: Mapping[str, Any], show: Callable[[Any], object] = lambda shown: None) -> dict[str, Any]:
    space: dict[str, Any] = {}
    for cell in nbformat.read(source, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        lines = ast.parse(cell.source).body
        last = lines.pop() if lines and isinstance(lines[-1], ast.Expr) else None
        exec(compile(ast.Module(lines, []), source.name, "exec"), space)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), source.name, "eval"), space)
            if shown is not None:
                show(shown)
        space.update(given if "parameters" in cell.metadata.get("tags", []) else {})
    return space
