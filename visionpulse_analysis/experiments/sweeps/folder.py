"""The folder of a sweep: ``traces/`` (a trace store), ``outcomes.jsonl``, ``table.csv`` and ``sweep.log``.

Workers write the traces, each whole or not at all. Only the process that drives the sweep writes the rest, and it
holds a lock. The traces are what is finished; ``outcomes.jsonl`` saves measuring them again and remembers failures.
``verdicts.jsonl`` is there where a language model's verdicts were read in.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visionpulse_analysis._util.files import holds_more_than_drafts, write_whole
from visionpulse_analysis.experiments.sweeps.worker import SweepError
from visionpulse_analysis.traces.store import TraceStore
from visionpulse_analysis.traces.zarr_group import disk_error

KIND, FORMAT_VERSION = "visionpulse sweep", 1


class SweepFolder:
    """Make or open the folder of a sweep for writing.

    Raises
    ------
    ValueError
        It holds something else, or a sweep of another format version.
    OSError
        It cannot be written.
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
