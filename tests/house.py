"""The measures of the house, as CONTRIBUTING.md gives them: ``python tests/house.py``.

Everything is read from the code's own imports and lines; nothing of the package is run.
"""

from __future__ import annotations

import ast
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "visionpulse_analysis"
COUNTED = ("*.py", "*.js", "*.css", "*.html")


@dataclass(frozen=True)
class House:
    """``lines`` of Python, script and style; ``files`` of Python; ``comments`` a share of the lines of Python."""

    lines: int
    files: int
    mean_file: float
    comments: float
    root: list[str]
    arrows: dict[str, set[str]]  # room -> rooms that it imports
    circles: list[str]  # rooms that reach themselves
    floors: list[list[str]]  # from the bottom


def measure(package: Path = PACKAGE) -> House:
    python = _files(package, "*.py")
    lines = sum(len(path.read_text().splitlines()) for kind in COUNTED for path in _files(package, kind))
    written = sum(len(path.read_text().splitlines()) for path in python)
    root = sorted(path.name for path in package.iterdir() if path.name != "__pycache__")
    arrows = _arrows(package, python)
    circles = sorted(room for room in arrows if room in _reached(room, arrows))
    comments = sum(map(_comments, python)) / written
    return House(
        lines, len(python), written / len(python), comments, root, arrows, circles, [] if circles else _floors(arrows)
    )


def _files(package: Path, kind: str) -> list[Path]:
    return [path for path in sorted(package.rglob(kind)) if "__pycache__" not in path.parts]


def _comments(path: Path) -> int:
    """Lines that hold a comment, also behind code."""
    with path.open("rb") as file:
        return sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))


def _arrows(package: Path, python: list[Path]) -> dict[str, set[str]]:
    """Which rooms import which, imports inside functions too, those for type checkers only left out."""
    arrows: dict[str, set[str]] = defaultdict(set)
    rooms = {path.stem if path.suffix == ".py" else path.name for path in package.iterdir()} - {"__pycache__"}
    for path in python:
        place = path.relative_to(package)
        if place.name in ("__init__.py", "__main__.py") and len(place.parts) == 1:
            continue
        arrows[place.parts[0].removesuffix(".py")] |= {
            room for room in _imported(ast.parse(path.read_text()), package.name) if room in rooms
        } - {place.parts[0].removesuffix(".py")}
    return dict(arrows)


def _imported(tree: ast.AST, package: str) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {name.name for name in node.names}
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith(f"{package}.")}
        found |= _imported(node, package)
    return found


def _reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    open_ = [room]
    while open_:
        new = arrows.get(open_.pop(), set()) - found
        found |= new
        open_ += new
    return found


def _floors(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Each room one floor above the highest room that it imports; where there is no circle."""

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in arrows.get(room, ())), default=-1)

    floors: dict[int, list[str]] = defaultdict(list)
    for room in arrows:
        floors[floor(room)].append(room)
    return [sorted(floors[number]) for number in sorted(floors)]


def picture(house: House) -> str:
    """The rooms as a mermaid picture, an arrow from each to the highest floor's rooms that it stands on."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    subgraph floor{n}[ ]\n        {'; '.join(rooms)}\n    end" for n, rooms in enumerate(house.floors)]
    level = {room: n for n, rooms in enumerate(house.floors) for room in rooms}
    for room in sorted(house.arrows, key=level.__getitem__, reverse=True):
        lines += [f"    {room} --> {below}" for below in sorted(house.arrows[room]) if level[below] == level[room] - 1]
    return "\n".join([*lines, "```"])


if __name__ == "__main__":
    house = measure()
    print(f"lines {house.lines:,}; files {house.files}; mean file {house.mean_file:.0f}; comments {house.comments:.1%}")
    print(f"root {len(house.root)}; circles {len(house.circles)}; floors {len(house.floors)}")
    print("\n".join(f"  {n}: {', '.join(rooms)}" for n, rooms in reversed(list(enumerate(house.floors, start=1)))))
    print(picture(house))
