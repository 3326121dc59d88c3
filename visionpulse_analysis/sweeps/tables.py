"""The tidy table of a sweep: one row per finished or failed job, as CSV or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from visionpulse_analysis._files import write_whole
from visionpulse_analysis.sweeps.plan import Job
from visionpulse_analysis.sweeps.rows import COLUMNS, DTYPES
from visionpulse_analysis.sweeps.state import State
from visionpulse_analysis.testbed.questions import Question
from visionpulse_analysis.testbed.truth import answer_is_right


def check_table(kind: str) -> None:
    """Raise ValueError where this kind of table cannot be written here."""
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("table: parquet needs pyarrow; install visionpulse-analysis[parquet], or say table: csv")


def rows(jobs: Sequence[Job], state: State) -> list[dict[str, Any]]:
    """One row per job that is finished or failed, in the order of the plan."""
    found = []
    for job in jobs:
        row = dict.fromkeys(COLUMNS)
        row |= {"id": job.id, "model": job.model.label, "sample": job.sample.name, "pruner": job.arm.label}
        row |= {"seed": job.seed, "task": job.sample.task, "question": job.sample.question}
        row |= {"expected": job.sample.expected}
        if job.id in state.finished:
            measured = state.outcomes.rows[job.id]
            found.append({**row, **measured, "status": "done", "right": is_right(job, measured["answer"])})
        elif job.id in state.failed:
            found.append({**row, "status": "failed", "error": state.failed[job.id]})
    return found


def is_right(job: Job, answer: str) -> bool | None:
    """Whether the answer after the trace is the expected one, word by word; None where that is not known."""
    sample = job.sample
    if sample.expected is None:
        return None
    return answer_is_right(Question(sample.task or "", sample.question, sample.expected, ()), answer)


def write_table(folder: Path, kind: str, found: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``table.csv`` or ``table.parquet``; a reader sees the old one or the new one."""
    path = folder / f"table.{kind}"
    if kind == "parquet":
        buffer = io.BytesIO()
        pd.DataFrame(list(found), columns=list(COLUMNS)).astype(DTYPES).to_parquet(buffer, index=False)
        write_whole(path, buffer.getvalue())
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        write_whole(path, text.getvalue().encode("utf-8"))
    return path
