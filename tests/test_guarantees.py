"""docs/guarantees.md: every promise names tests, and they exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
NAME = re.compile(r"`(tests/[^`:]+\.py)::([^`]+)`")


def names_in(file: Path) -> set[str]:
    """The tests of a file, as pytest names them."""
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = (n.name for n in inner if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))
        found |= {prefix + name for name in functions}
    return found


def test_every_promise_names_tests_that_exist():
    rows = [
        line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line and "| promise |" not in line
    ]
    assert len(rows) > 20
    for row in rows:
        promise, held_by = row.strip("| ").rsplit(" | ", 1)
        named = NAME.findall(held_by)
        assert named and NAME.sub("", held_by).strip(", ") == "", promise
        for file, test in named:
            assert (ROOT / file).is_file(), file
            assert test in names_in(ROOT / file), f"{promise}: {file}::{test}"


def test_every_hostile_test_holds_a_promise():
    named = set(NAME.findall(PAGE))
    files = sorted((ROOT / "tests" / "hostile").glob("test_*.py"))
    assert files and {f"tests/hostile/{file.name}" for file in files} <= {file for file, _ in named}
