"""The tidy table of a sweep: one row per finished or failed job, as CSV or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.experiments.judging import RIGHT_FROM
from visionpulse_analysis.experiments.sweeps.plan import Job
from visionpulse_analysis.experiments.sweeps.rows import COLUMNS, DTYPES
from visionpulse_analysis.experiments.sweeps.state import State
from visionpulse_analysis.experiments.sweeps.verdicts import read_kept, verdict_on

SECONDS_BETWEEN = 60.0


def check_table(kind: str) -> None:
    """Raise ValueError where this kind of table cannot be written here."""
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("table: parquet needs pyarrow; install visionpulse-analysis[parquet], or say table: csv")


def rows(jobs: Sequence[Job], state: State, verdicts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per job that is finished or failed, in the order of the plan; ``verdicts`` of `verdicts.read_kept`."""
    found = []
    for job in jobs:
        row = dict.fromkeys(COLUMNS)
        row |= {"id": job.id, "model": job.model.label, "sample": job.sample.name, "pruner": job.arm.label}
        row |= {"seed": job.seed, "task": job.sample.task, "question": job.sample.question}
        row |= {"expected": job.sample.expected}
        if job.id in state.finished:
            measured = state.outcomes.rows[job.id]
            found.append({**row, **measured, "status": "done", **_judged(job, measured["answer"], verdicts)})
        elif job.id in state.failed:
            found.append({**row, "status": "failed", "error": state.failed[job.id]})
    return found


def _judged(job: Job, answer: str, verdicts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How an answer after the trace scores: right, score (0..1) and judge; None where that is not known (yet)."""
    reference = job.sample.reference
    if reference is None:
        return {}
    score = reference.score(answer)
    if score is None:
        return {"judge": reference.judge, **verdict_on(verdicts.get(job.id), answer)}
    return {"right": score >= RIGHT_FROM, "score": score, "judge": reference.judge}


class _Lines(io.StringIO):
    """Rows end in a line feed, but the csv module quotes a carriage return in a text only if one ends its rows."""

    def write(self, row: str) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


class LiveTable:
    """The table of a sweep that is going on: written now and then, taking a fiftieth of the time at most."""

    def __init__(self, folder: Path, kind: str, jobs: Sequence[Job], state: State) -> None:
        self.folder, self.kind, self.jobs, self.state = folder, kind, jobs, state
        self.verdicts = read_kept(folder)
        self._due = time.monotonic() + SECONDS_BETWEEN

    def write(self) -> Path:
        """Write it now."""
        started = time.monotonic()
        path = write_table(self.folder, self.kind, rows(self.jobs, self.state, self.verdicts))
        ended = time.monotonic()
        self._due = ended + max(SECONDS_BETWEEN, 50 * (ended - started))
        return path

    def write_if_due(self) -> None:
        """Write it if the last time is long ago."""
        if time.monotonic() >= self._due:
            self.write()


def write_table(folder: Path, kind: str, found: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``table.csv`` or ``table.parquet``; a reader sees the old one or the new one."""
    path = folder / f"table.{kind}"
    if kind == "parquet":
        buffer = io.BytesIO()
        pd.DataFrame(list(found), columns=list(COLUMNS)).astype(DTYPES).to_parquet(buffer, index=False)
        write_whole(path, buffer.getvalue())
    else:
        text = _Lines(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(found)
        write_whole(path, text.getvalue().encode("utf-8"))
    return path
