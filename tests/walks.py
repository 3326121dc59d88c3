"""Two walks through the package, drawn from the code's own calls: ``python tests/walks.py``.

From an image to its trace, and from what a pruner chooses to the mask of an attention call. One real decode runs under
a profiler; a box is a file, and an arrow the call by which a file is entered first, in the order they happen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np

import visionpulse_analysis as vpa

PACKAGE = Path(vpa.__file__).parent
QUESTION = "describe the picture ."
APART = ("_util", "__init__.py")  # helpers of every room, and the door


def calls(run: Callable[[], object]) -> list[tuple[str, str, str]]:
    """(caller's file, file, function): by which call each file of the package is entered first, in that order."""
    found: dict[str, tuple[str, str]] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (callee := _file(frame)) is None or frame.f_code.co_name.startswith("<"):
            return
        before = frame.f_back
        while before is not None and ((caller := _file(before)) is None or before.f_code.co_name.startswith("<")):
            before = before.f_back
        if before is not None and caller != callee:
            found.setdefault(callee, (caller, _name(frame)))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return [(caller, callee, name) for callee, (caller, name) in found.items()]


def _file(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    if PACKAGE not in path.parents:
        return None
    place = path.relative_to(PACKAGE)
    return None if place.parts[0] in APART else str(place.with_suffix("")).removesuffix("/__init__")


def _name(frame: FrameType) -> str:
    """``Class.method``; a class alone where it is made."""
    return frame.f_code.co_qualname.replace(".<locals>", "").removesuffix(".__init__").removesuffix(".__post_init__")


def drawn(found: list[tuple[str, str, str]]) -> str:
    """The calls as a mermaid picture."""
    names = {file: file.replace("/", "_") for edge in found for file in edge[:2]}
    lines = [f'    {name}["{file}"]' for file, name in names.items()]
    lines += [f'    {names[caller]} -- "{name}" --> {names[callee]}' for caller, callee, name in found]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def walks() -> dict[str, list[tuple[str, str, str]]]:
    vlm = vpa.load("scenes")
    image = np.zeros((128, 128, 3), np.uint8)
    asked = {"pruner": vpa.VisionPulse(), "max_new_tokens": 2}
    vpa.decode(vlm, image, QUESTION, **asked)  # what is imported on first use is no step of the walk
    whole = calls(lambda: vpa.decode(vlm, image, QUESTION, **asked))
    inside = {"attention", "pruners"}
    chosen = [edge for edge in whole if edge[1].split("/")[0] in inside]
    return {"From an image to its trace": [e for e in whole if e not in chosen], "From a choice to the mask": chosen}


if __name__ == "__main__":
    for title, found in walks().items():
        print(f"**{title}**\n\n{drawn(found)}\n")
