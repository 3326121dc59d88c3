"""What this process has used, for the provenance of what it writes: noted where it is used, read when it is written."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

NOTEBOOK = "VISIONPULSE_NOTEBOOK"  # variable of the environment by which a kernel knows what it runs
_noted: dict[str, dict[str, Any]] = {}
command: list[str] | None = None  # that runs, as words for a shell, without where it writes
_alive: list[tuple[str, weakref.ref, Callable[[Any], dict[str, Any]]]] = []


def note(kind: str, name: str, fact: Any) -> None:
    """Note a plain fact, such as a hash of the content of a folder of pictures."""
    _noted.setdefault(kind, {})[name] = fact


def note_object(kind: str, value: Any, facts: Callable[[Any], dict[str, Any]]) -> None:
    """Note an object whose facts are asked for when something is written; forgotten with the object."""
    _alive[:] = [one for one in _alive if one[1]() is not None]
    _alive.append((kind, weakref.ref(value), facts))


def noted() -> dict[str, Any]:
    """All facts by kind, JSON-ready."""
    found: dict[str, Any] = {kind: dict(sorted(facts.items())) for kind, facts in sorted(_noted.items())}
    for kind, reference, facts in _alive:
        value = reference()
        if value is not None and (told := facts(value)) not in found.setdefault(kind, []):
            found[kind].append(told)
    return found
