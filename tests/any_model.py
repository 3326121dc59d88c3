"""Pruners with a trained head serve one model alone; with an untrained one they run on the tiny models of the tests."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import visionpulse_analysis as vpa


def make_for_any(name: str, **options: Any) -> Any:
    """A pruner by name that runs on any model: as it is by default, but for its head."""
    takes = {field.name for field in fields(vpa.list_pruners()[name])} if name in vpa.list_pruners() else set()
    return vpa.make_pruner(name, **({"head": "untrained"} if "head" in takes else {}), **options)
