"""Pruners: which image patches stay visible, and when. One dataclass per method."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from visionpulse_analysis.pruners.anchored import FixedShare
from visionpulse_analysis.pruners.base import KNOWN, Layout, Pruner, Selection, View
from visionpulse_analysis.pruners.baselines import KeepAll, Random, Uniform
from visionpulse_analysis.pruners.stale import LastStepOnly, PrefillOnce
from visionpulse_analysis.pruners.visionpulse import VisionPulse

__all__ = [
    "FixedShare",
    "KeepAll",
    "LastStepOnly",
    "Layout",
    "PrefillOnce",
    "Pruner",
    "Random",
    "Selection",
    "Uniform",
    "View",
    "VisionPulse",
    "list_pruners",
    "make_pruner",
]


def list_pruners() -> dict[str, type[Pruner]]:
    """All pruners by name, including those defined by the user as subclasses of :class:`Pruner`."""
    return dict(sorted(KNOWN.items()))


def make_pruner(name: str, **parameters: Any) -> Pruner:
    """Build a pruner by name.

    Raises ValueError for an unknown name or parameter, naming those that exist.
    """
    known = list_pruners()
    if name not in known:
        raise ValueError(f"no pruner {name!r}; known: {', '.join(known)}")
    taken = [field.name for field in fields(known[name])]
    wrong = [parameter for parameter in parameters if parameter not in taken]
    if wrong:
        raise ValueError(
            f"pruner {name!r} has no parameter {', '.join(map(repr, wrong))}; it takes {', '.join(taken) or 'none'}"
        )
    return known[name](**parameters)
