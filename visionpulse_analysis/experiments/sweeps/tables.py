"""How far a sweep is, and its tidy table: one row per finished or failed job, as CSV or Parquet. Needs no torch."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import io
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from visionpulse_analysis._util.files import holds_more_than_drafts, write_whole
from visionpulse_analysis.experiments.judging import LANGUAGE_MODEL, RIGHT_FROM
from visionpulse_analysis.experiments.sweeps.worker import SweepError
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.store import TraceStore
from visionpulse_analysis.traces.zarr_group import disk_error

if TYPE_CHECKING:
    from visionpulse_analysis.experiments.sweeps.samples import Job


KIND, FORMAT_VERSION = "visionpulse sweep", 1


class SweepFolder:
    """Make or open the folder of a sweep for writing.

    Raises ValueError: it holds something else, or a sweep of another format version; OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        header = self.path / "sweep.json"
        if not header.exists():
            if self.path.exists() and (not self.path.is_dir() or holds_more_than_drafts(self.path, header.name)):
                raise ValueError(f"{path} exists and is no sweep; choose a new or empty folder")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_whole(header, json.dumps(_header(uuid.uuid4().hex)).encode())
            except OSError as error:
                raise disk_error(error, self.path, "nothing was written") from error
        self.token = read_header(self.path)["token"]
        self.store = TraceStore(self.path / "traces", mode="a")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from driving this sweep at the same time; the lock dies with the process.

        Raises SweepError where another process holds it.
        """
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SweepError(f"a sweep is running in {self.path} already; wait for it or stop it") from error
            yield


def read_header(path: Path) -> dict[str, Any]:
    """What ``sweep.json`` says; raises ValueError where it is damaged or of another version."""
    try:
        header = json.loads((path / "sweep.json").read_text("utf-8"))
        kind, found = header["kind"], header["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / 'sweep.json'} is damaged ({error}); restore it") from error
    if kind != KIND or found != FORMAT_VERSION:
        raise ValueError(f"{path} holds {kind!r} of format version {found!r}; expected {KIND!r}, {FORMAT_VERSION}")
    return header


def check_token(path: Path, token: str) -> None:
    """Raise SweepError unless ``path`` is, seen from here, the folder of the sweep with this token."""
    try:
        seen = read_header(path)["token"]
    except (OSError, ValueError) as error:
        raise SweepError(
            f"worker on {os.uname().nodename} does not see the sweep's folder {path} ({error}); "
            "the folder must be on a disk that all workers share, under the same path"
        ) from error
    if seen != token:
        raise SweepError(
            f"worker on {os.uname().nodename} sees another sweep at {path}; share that disk with the workers"
        )


def _header(token: str) -> dict[str, Any]:
    return {"kind": KIND, "format_version": FORMAT_VERSION, "token": token}


class Outcomes:
    """Rows and failures by job, on disk line by line; what a kill cut off is dropped when it is opened again.

    rows : id -> row. failures : id -> errors, in order. final : ids not to be tried again, whatever attempts are left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, list[str]] = {}
        self.final: set[str] = set()
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is damaged ({error}); delete the file: it is made again from the traces"
                ) from error

    def add(self, outcomes: Iterable[dict[str, Any]]) -> None:
        """Note outcomes ({"id", "row"} or {"id", "error"}) in one write."""
        listed = [
            {key: outcome[key] for key in ("id", "row", "error", "final") if key in outcome} for outcome in outcomes
        ]
        text = "".join(json.dumps(outcome) + "\n" for outcome in listed)
        try:
            with self.path.open("ab") as file:  # buffered: on a disk that is nearly full, a bare write may write half
                file.write(text.encode())
        except OSError as error:
            raise disk_error(error, self.path, "finished traces are kept") from error
        for outcome in listed:
            self._take(outcome)

    def forget_failures(self) -> None:
        """Give every failed sample its attempts back."""
        kept = [{"id": id, "row": row} for id, row in self.rows.items()]
        write_whole(self.path, "".join(json.dumps(outcome) + "\n" for outcome in kept).encode())
        self.failures.clear()
        self.final.clear()

    def _take(self, outcome: dict[str, Any]) -> None:
        if "row" in outcome:
            self.rows[outcome["id"]] = dict(outcome["row"])
        else:
            self.failures.setdefault(outcome["id"], []).append(str(outcome["error"]))
            if outcome.get("final"):
                self.final.add(outcome["id"])


# Text stays text: an answer "3", "NA" or "None" is no number and not missing. "right" and "score" are empty where
# nobody knows; "judge" names the rule (`judging.JUDGES`) or the model that scored, or is to score, the answer.
DTYPES: dict[str, Any] = {
    "id": "string",
    "model": "string",
    "sample": "string",
    "pruner": "string",
    "seed": "Int64",
    "task": "string",
    "question": "string",
    "expected": "string",
    "status": "string",
    "right": "boolean",
    "score": "float64",
    "judge": "string",
    "answer": "string",
    "finished": "boolean",
    "tokens": "Int64",
    "patches": "Int64",
    "kept": "float64",
    "mass": "float64",
    "logprob": "float64",
    "weights": "string",
    "error": "string",
}
COLUMNS = tuple(DTYPES)


def row_of(trace: Trace) -> dict[str, Any]:
    """Measure one trace.

    Returns
    -------
    dict
        answer : the text after the reasoning. finished : False where the limit of tokens cut the trace off. tokens,
        patches : numbers of them. kept : mean share of the patches visible over the steps after prefill; 1 when dense.
        mass : mean image mass over steps and recorded layers, 0..1, or None where none was recorded. logprob : mean
        natural log probability of the tokens. weights : hash of the model's weights.
    """
    kept = None if trace.kept is None else np.asarray(trace.kept.values)[1:]
    mass = np.asarray(trace.mass.values, dtype=np.float64)
    return {
        "answer": trace.answer,
        "finished": bool(trace.meta.get("finished")),
        "tokens": len(trace),
        "patches": len(trace.grid),
        "kept": 1.0 if kept is None or len(kept) == 0 else float(kept.mean()),
        "mass": float(mass.mean()) if mass.size else None,
        "logprob": float(np.mean(trace.logprobs, dtype=np.float64)),
        "weights": trace.meta.get("model_hash"),
    }


class State:
    """Read from the folder, kept up as outcomes come in.

    finished : ids of the planned jobs whose trace is stored. others : number of traces that no planned job asks for,
    made under other settings: kept, and not in the table. failed : id -> last error of jobs without attempts left.
    weights : model label -> hash of the weights its traces were made with.
    """

    def __init__(self, folder: SweepFolder, jobs: Sequence[Job], retries: int, retry_failed: bool) -> None:
        self.jobs, self.retries = {job.id: job for job in jobs}, retries
        self.outcomes = Outcomes(folder.path / "outcomes.jsonl")
        if retry_failed:
            self.outcomes.forget_failures()
        # The store decides what is finished: a kill can fall between a trace and its line in the outcomes.
        stored = folder.store.finished_ids
        self.finished = {id for id in stored if id in self.jobs}
        self.others = len(stored) - len(self.finished)
        self.failed: dict[str, str] = {}
        self.weights: dict[str, str] = {}
        self.outcomes.add(
            {"id": id, "row": row_of(folder.store[id])} for id in sorted(self.finished) if id not in self.outcomes.rows
        )
        self._note_weights(sorted(self.finished))
        self._count_failures(self.outcomes.failures)

    @property
    def closed(self) -> int:
        """Number of jobs with which nothing is left to be done."""
        return len(self.finished) + len(self.failed)

    def is_open(self, job: Job) -> bool:
        """Whether the job is neither finished nor failed for good."""
        return job.id not in self.finished and job.id not in self.failed

    def failed_before(self, job: Job) -> bool:
        """Whether the job has failed at least once."""
        return job.id in self.outcomes.failures

    def take(self, outcomes: Sequence[dict[str, Any]]) -> None:
        """Note what a batch came to, on disk first; raises SweepError where one model has two weights."""
        self.outcomes.add(outcomes)
        done = [outcome["id"] for outcome in outcomes if "row" in outcome]
        self.finished.update(done)
        self._note_weights(done)
        self._count_failures(outcome["id"] for outcome in outcomes if "error" in outcome)

    def _note_weights(self, ids: Iterable[str]) -> None:
        """Raise SweepError for traces of one model with other weights: workers that began together may load such."""
        for id in ids:
            label, found = self.jobs[id].model.label, self.outcomes.rows[id]["weights"]
            known = self.weights.setdefault(label, found)
            if found != known:
                raise SweepError(
                    f"{id} was made with other weights ({found}) than the traces before it ({known}): workers load "
                    f"different files as {label!r}; let them load the same, and sweep into another folder"
                )

    def _count_failures(self, ids: Iterable[str]) -> None:
        for id in ids:
            errors = self.outcomes.failures[id]
            spent = len(errors) > self.retries or id in self.outcomes.final
            if id in self.jobs and id not in self.finished and spent:
                self.failed[id] = errors[-1]


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
