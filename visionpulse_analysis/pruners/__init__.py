"""Pruners: which image patches stay visible, and when. One dataclass per method."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.pruners.base import Layout, Pruner, Selection, View
from visionpulse_analysis.pruners.baselines import KeepAll, Random
from visionpulse_analysis.pruners.visionpulse import VisionPulse

__all__ = [
    "KeepAll",
    "Layout",
    "Pruner",
    "Random",
    "Selection",
    "View",
    "VisionPulse",
    "list_pruners",
    "make_pruner",
]


def list_pruners() -> dict[str, type[Pruner]]:
    """All pruners by name, including those defined by the user as subclasses of :class:`Pruner`."""
    found: dict[str, type[Pruner]] = {}
    waiting = list(Pruner.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.name:
            found[cls.name] = cls
    return dict(sorted(found.items()))


def make_pruner(name: str, **parameters: Any) -> Pruner:
    """Build a pruner by name.

    Raises ValueError for an unknown name or parameter, naming those that exist.
    """
    known = list_pruners()
    if name not in known:
        raise ValueError(f"no pruner {name!r}; known: {', '.join(known)}")
    try:
        return known[name](**parameters)
    except TypeError as error:
        fields = ", ".join(known[name].__dataclass_fields__)
        raise ValueError(
            f"pruner {name!r} takes {fields or 'no parameters'}; got {parameters} ({error})"
        ) from error
