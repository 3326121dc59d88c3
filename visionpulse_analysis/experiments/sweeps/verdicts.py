"""Verdicts of a language model that a sweep's folder keeps: ``verdicts.jsonl``; see `unjudged`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionpulse_analysis.experiments.judging import LANGUAGE_MODEL, RIGHT_FROM

VERDICTS = "verdicts.jsonl"


def read_kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Id of a trace -> id, score, judge and the answer judged; raises ValueError where the file is damaged."""
    path = folder / VERDICTS
    if not path.exists():
        return {}
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        return {one["id"]: {name: one[name] for name in ("id", "score", "judge", "answer")} for one in found}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it and read the verdicts in again") from error


def verdict_on(verdict: Mapping[str, Any] | None, answer: str) -> dict[str, Any]:
    """The columns right, score and judge; none where there is no verdict on this answer."""
    if verdict is None or verdict["answer"] != answer:
        return {}
    score = verdict["score"]
    return {"right": score >= RIGHT_FROM, "score": score, "judge": f"{LANGUAGE_MODEL}: {verdict['judge']}"}
