"""Many traces in one folder: appended as they are made, listed without opening any."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionpulse_analysis._util.files import (
    disk_error,
    holds_more_than_drafts,
    is_apple_double,
    is_foreign,
    write_whole,
)
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import StoreVersionError, Trace, create_trace
from visionpulse_analysis.traces.frames import store_html
from visionpulse_analysis.traces.journal import TraceWriter, is_being_written, read_journal
from visionpulse_analysis.traces.quantities import BUILT_IN, CHOICE, Quantity
from visionpulse_analysis.traces.zarr_group import FORMAT_VERSION, check_format

__all__ = ["StoreVersionError", "TraceStore", "TraceWriter"]

KIND = "visionpulse trace store"
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_JOURNAL = re.compile(rf"\.({_ID.pattern})\.journal")


class TraceStore:
    """A folder of traces.

    ``<id>/`` is a finished trace (a zarr group), ``.<id>.journal`` one that is being streamed or was cut off.
    Other hidden names are left by killed processes and mean nothing. The folder is itself a zarr group.

    Parameters
    ----------
    path : str or Path
    mode : "r" or "a"
        Read, or read and add; "a" creates the store if there is none.

    Raises
    ------
    FileNotFoundError, ValueError
        mode "r" and there is no store; the folder holds something else.
    StoreVersionError
        It was written in another format version.
    PermissionError
        mode "a" and the folder may not be written.

    Examples
    --------
    >>> import tempfile
    >>> store = TraceStore(Path(tempfile.mkdtemp()) / "traces", mode="a")
    >>> store.ids
    []
    """

    def __init__(self, path: str | Path, mode: Literal["r", "a"] = "r") -> None:
        if mode not in ("r", "a"):
            raise ValueError(f"mode must be 'r' (read) or 'a' (read and add), got {mode!r}")
        self.path, self.mode = Path(path), mode
        root = self.path / "zarr.json"
        if mode == "a" and not root.exists():
            self._create(root)
        if not root.exists():
            raise FileNotFoundError(f"no trace store at {self.path}; TraceStore(path, mode='a') creates one")
        try:
            attributes = json.loads(root.read_text("utf-8"))["attributes"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{root} is damaged ({error}); restore it (the traces beside it are untouched)") from error
        check_format(attributes, KIND, self.path)
        if mode == "a" and not os.access(self.path, os.W_OK):
            raise PermissionError(f"{self.path} may not be written; open it with mode='r' or choose another folder")

    def _create(self, root: Path) -> None:
        if self.path.exists() and (not self.path.is_dir() or holds_more_than_drafts(self.path, root.name)):
            raise ValueError(f"{self.path} exists and is no trace store; choose a new or empty folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.path, "nothing was written") from error
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"kind": KIND, "format_version": FORMAT_VERSION}}
        write_whole(root, json.dumps(group).encode())

    @property
    def ids(self) -> list[str]:
        """All ids, sorted: finished and unfinished traces."""
        return sorted({*self._scan(finished=True), *self._scan(finished=False)})

    @property
    def finished_ids(self) -> list[str]:
        """The ids of whole traces, sorted."""
        return sorted(self._scan(finished=True))

    def _scan(self, finished: bool) -> Iterator[str]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if finished and _ID.fullmatch(entry.name) and entry.is_dir() and not is_foreign(entry.name):
                    yield entry.name
                elif not finished and (journal := _JOURNAL.fullmatch(entry.name)):
                    if not is_apple_double(Path(entry.path)):
                        yield journal[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        named = isinstance(id, str) and _ID.fullmatch(id) and not is_foreign(id)
        return bool(named) and (self._folder(str(id)).is_dir() or self._journal(str(id)).is_file())

    def __getitem__(self, id: str) -> Trace:
        """Open one trace; an unfinished one holds its finished steps and says ``meta["complete"] is False``.

        Raises KeyError: there is no such id; the message lists some that exist; ValueError, StoreVersionError: the
        trace is damaged or of another version; the message names the file.
        """
        if id not in self:
            shown = ", ".join(self.ids[:5] + ["..."] * (len(self) > 5)) or "none"
            raise KeyError(f"no trace {id!r} in {self.path}; it has {len(self)} traces: {shown}")
        if not self._folder(id).is_dir():
            try:
                return read_journal(self._journal(id))
            except FileNotFoundError:
                pass  # its writer closed it between the two lines above
        return Trace.open(self._folder(id))

    def _repr_html_(self) -> str:
        return store_html(self)

    def add(self, trace: Trace, overwrite: bool = False) -> None:
        """Store a whole trace under ``trace.meta["id"]``.

        Parameters
        ----------
        trace : Trace, complete
        overwrite : bool, whether to replace what the id holds

        Raises
        ------
        ValueError
            The id is missing or no safe file name, the trace is incomplete, or the store's mode is "r".
        FileExistsError
            The id exists and `overwrite` is False, or is just being written.
        OSError
            The disk is full or the folder cannot be written; nothing is left behind.
        """
        id = trace.meta.get("id", "")
        if not trace.meta.get("complete"):
            raise ValueError(f"trace {id!r} is incomplete; keep it with trace.save(path), a store takes whole traces")
        with self._claim(id, overwrite):
            trace.save(self._folder(id), overwrite=overwrite)
            self._journal(id).unlink(missing_ok=True)

    def writer(
        self,
        id: str,
        *,
        grid: PatchGrid,
        layers: Sequence[int],
        heads: Sequence[int] | None = None,
        optional: Sequence[str] = (),
        images: Sequence[np.ndarray] = (),
        prompt_tokens: Sequence[str] = (),
        meta: Mapping[str, Any],
        n_layers: int = 0,
        overwrite: bool = False,
        quantities: Sequence[Quantity] = (),
    ) -> TraceWriter:
        """Begin to stream one trace.

        Parameters
        ----------
        id : str
            Letters, digits, ``. _ -``, no leading dot, at most 200 characters; becomes ``meta["id"]``.
        grid, layers, heads, images, prompt_tokens, meta : as in `create_trace`
        optional : subset of "kept", "budget", "k", "pruner_mass", "k_per_layer"
            What every step will bring besides attention, mass, token, token_id and logprob.
        n_layers : int
            Layers of the model; needed with "k_per_layer".
        overwrite : bool
            Replace what this id holds: an unfinished trace at once, a whole one when the new one is closed.
        quantities : sequence of Quantity
            Of attention calls, which every step will bring, too.

        Returns
        -------
        TraceWriter, to be closed

        Raises
        ------
        ValueError, TypeError
            As `create_trace`; or a wrong id, or the store was opened with mode "r".
        FileExistsError
            The id exists and `overwrite` is False, or is just being written.
        OSError
            The disk is full or the folder cannot be written; nothing is left behind.
        """
        unknown = set(optional) - set(CHOICE)
        if unknown:
            raise ValueError(f"optional takes {list(CHOICE)}, got {sorted(unknown)}")
        sizes = {"step": 0, "layer": len(layers), "head": len(heads or ()), "patch": len(grid), "model_layer": n_layers}

        def no_step(row: Quantity) -> np.ndarray:
            return np.empty([sizes[axis] for axis in row.recorded_axes(heads)], row.dtype)

        header = create_trace(
            **{name: no_step(BUILT_IN[name]) for name in ("attention", "mass", *optional)},  # pyright: ignore
            **{"tokens": [], "token_ids": [], "logprobs": []},
            recorded={row: no_step(row) for row in quantities},
            **{"grid": grid, "layers": layers, "heads": heads, "images": images, "prompt_tokens": prompt_tokens},
            meta={**meta, "id": id, "complete": False},
        )
        with self._claim(id, overwrite):
            return TraceWriter(self._journal(id), self._folder(id), header, overwrite)

    def check_new(self, id: str, overwrite: bool = False) -> None:
        """Raise ValueError for an `id` that is none, FileExistsError for one taken (unless `overwrite`) or in use."""
        if self.mode != "a":
            raise ValueError(f"{self.path} was opened with mode='r'; open it with mode='a' to add traces")
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise ValueError(f"{id!r} is no trace id: 1 to 200 letters, digits, '.', '_' or '-', no leading dot")
        folder, journal = self._folder(id), self._journal(id)
        if journal.exists() and is_being_written(journal):
            raise FileExistsError(f"trace {id!r} in {self.path} is being written by another writer right now")
        if not overwrite and (folder.exists() or journal.exists()):
            state = "" if folder.exists() else " (incomplete)"
            raise FileExistsError(f"trace {id!r}{state} exists in {self.path}; say overwrite=True (--overwrite)")

    @contextmanager
    def _claim(self, id: str, overwrite: bool) -> Iterator[None]:
        """Hold the store's lock after checking that this id may be written."""
        self.check_new(id, overwrite)
        try:
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise disk_error(error, self.path, "nothing was written") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.check_new(id, overwrite)  # another process may have been quicker
            yield

    def _folder(self, id: str) -> Path:
        return self.path / id

    def _journal(self, id: str) -> Path:
        return self.path / f".{id}.journal"
