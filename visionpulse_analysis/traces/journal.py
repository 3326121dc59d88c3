"""Streaming a trace while it is made: one append-only file, readable up to the last whole step after a kill.

zarr cannot append one step to several arrays in one stroke, nor in less than a millisecond. So the steps
first go to a journal (a header record, then one record per step, each `length, crc32, bytes` in one write),
and `close` turns it into the final zarr group.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visionpulse_analysis._util.files import disk_error
from visionpulse_analysis.traces.data import STEP_COLUMNS, from_parts, json_copy, quantities_in, to_parts
from visionpulse_analysis.traces.trace import Trace, create_trace
from visionpulse_analysis.traces.zarr_group import FORMAT_VERSION, check_format

KIND = "visionpulse journal"
_PREFIX = struct.Struct("<QI")  # length and crc32 of the bytes that follow
_STEP_ARRAYS = ("attention", "mass", "kept", "k_per_layer", *STEP_COLUMNS)  # in the order of their bytes


class TraceWriter:
    """Writes one trace step by step; made by `TraceStore.writer`.

    As a context manager it closes the trace when the block ends well; when it raises, the trace is left
    unfinished (`complete` False, every step so far readable).
    """

    def __init__(self, journal: Path, target: Path, header: Trace, overwrite: bool) -> None:
        self._journal, self._target, self._overwrite = journal, target, overwrite
        self._record = _record_dtype(header)
        self._steps = 0
        temporary = journal.with_name(f"{journal.name}.tmp-{uuid.uuid4().hex[:8]}")
        try:
            self._file: io.FileIO | None = io.FileIO(temporary, "xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)  # held until closed or killed: see is_being_written
            self._write(_encode_header(header))
            temporary.replace(journal)
        except OSError as error:
            raise disk_error(error, journal, "nothing was written") from error
        finally:
            temporary.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._steps

    def append(self, *, token: str, **arrays: Any) -> None:
        """Write one finished step; when this returns, the step survives a kill of the process.

        Parameters
        ----------
        token : str
            Text of the generated token.
        attention : float16 [layer, patch] or [layer, head, patch]
        mass : float32 [layer] or [layer, head]
        token_id, logprob : int, float
        kept : bool [patch]
        budget, k, pruner_mass, k_per_layer : float, int, float, int [model_layer]
            `kept` and these are given at every step if the writer was made with them, else never; so are further
            quantities.

        Raises
        ------
        TypeError, ValueError
            An array is missing, not expected, or of the wrong shape; nothing was written.
        OSError
            The disk is full or gone; the steps before stay readable and the writer takes no more.
        """
        if self._file is None:
            raise ValueError(f"the writer of {self._target} is closed; its {self._steps} steps can be read")
        if set(arrays) != set(self._record.names or ()):
            raise TypeError(f"append takes token and {list(self._record.names or ())}, got {sorted(arrays)}")
        text = json_copy(token, "token", only=str)
        step = np.zeros((), self._record)
        for name, value in arrays.items():
            array = np.asarray(value)
            if array.shape != self._record[name].shape:
                raise ValueError(f"{name} must have shape {self._record[name].shape}, got {array.shape}")
            step[name] = array
        self._write(step.tobytes() + text.encode("utf-8"))
        self._steps += 1

    def close(self, meta: Mapping[str, Any] | None = None) -> Trace:
        """Turn the journal into the final zarr group and mark it complete.

        Parameters
        ----------
        meta : dict, optional
            Added to the header's meta: what is known only now (`finished`, `text`, ...).

        Returns
        -------
        Trace
            The whole trace, in memory.

        Raises
        ------
        ValueError
            The writer is closed, or the journal was changed by someone else.
        OSError, FileExistsError
            The group cannot be written; the journal stays readable, and `close` may be called again.
        """
        if self._file is None:
            raise ValueError(f"the writer of {self._target} is closed already")
        trace = read_journal(self._journal)
        if len(trace) != self._steps:
            raise ValueError(f"{self._journal} was changed: it holds {len(trace)} steps, {self._steps} were written")
        trace = trace.with_meta({**trace.meta, **(meta or {}), "complete": True})
        trace.save(self._target, overwrite=self._overwrite)
        self._journal.unlink(missing_ok=True)
        self.abandon()
        return trace

    def abandon(self) -> None:
        """Stop writing and leave the trace unfinished."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._file is not None:
                self.close()
        finally:
            self.abandon()

    def _write(self, payload: bytes) -> None:
        if self._file is None:
            raise ValueError(f"the writer of {self._target} is closed")
        rest = memoryview(_PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except BaseException as error:
            self.abandon()  # a later record behind half a record could not be read
            if not isinstance(error, OSError):
                raise
            kept = f"the {self._steps} steps before stay readable as an incomplete trace"
            raise disk_error(error, self._journal, kept) from error


def is_being_written(journal: Path) -> bool:
    """Tell whether a living process holds this journal open for writing."""
    with journal.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_journal(path: Path) -> Trace:
    """Rebuild the trace from every whole step of a journal; its meta says `complete` False.

    Reading stops at the first record that is cut short or does not match its checksum. Raises FileNotFoundError:
    nothing is there; ValueError: the header is damaged or was never finished; the file is named; StoreVersionError: the
    journal was written in another format version.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        records = _whole_records(file, size)
        header = _decode_header(next(records, b""), path)
        dtype = _record_dtype(header)
        # Room for as many steps as the file can hold: filled in place, not collected and copied.
        steps = np.empty((size - file.tell()) // dtype.itemsize, dtype)
        tokens: list[str] = []
        for payload in records:
            if len(payload) < dtype.itemsize:
                raise ValueError(f"{path} is damaged (a step is too short); delete it and record the trace again")
            steps[len(tokens)] = np.frombuffer(payload[: dtype.itemsize], dtype)[0]
            tokens.append(payload[dtype.itemsize :].decode("utf-8"))
    named = {"token_id": "token_ids", "logprob": "logprobs"}
    columns: dict[str, Any] = {named.get(name, name): steps[name][: len(tokens)] for name in dtype.names or ()}
    more = {row: columns.pop(row.name) for row in quantities_in(header.dataset)}
    return create_trace(
        **columns,
        recorded=more,
        tokens=tokens,
        grid=header.grid,
        layers=header.layers,
        heads=header.heads,
        images=header.images,
        prompt_tokens=header.prompt_tokens,
        meta=header.meta,
    )


def _whole_records(file: BinaryIO, size: int) -> Iterator[bytes]:
    while len(prefix := file.read(_PREFIX.size)) == _PREFIX.size:
        length, checksum = _PREFIX.unpack(prefix)
        if length == 0 or length > size - file.tell():
            return
        payload = file.read(length)
        if zlib.crc32(payload) != checksum:
            return
        yield payload


def _record_dtype(header: Trace) -> np.dtype:
    every = (*_STEP_ARRAYS, *(row.name for row in quantities_in(header.dataset)))
    names = [name for name in every if name in header.dataset]
    return np.dtype([(name, header.dataset[name].dtype, header.dataset[name].shape[1:]) for name in names])


def _encode_header(header: Trace) -> bytes:
    arrays, attributes = to_parts(header.dataset)
    attributes = {"kind": KIND, "format_version": FORMAT_VERSION, **attributes}
    buffer = io.BytesIO()
    arrays["attributes"] = np.frombuffer(json.dumps(attributes).encode("utf-8"), np.uint8)
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def _decode_header(payload: bytes, path: Path) -> Trace:
    if not payload:
        raise ValueError(f"{path} was killed before its first step; delete it, or write again with overwrite=True")
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as file:
            parts = dict(file)
        attributes = json.loads(parts.pop("attributes").tobytes())
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and record the trace again") from error
    check_format(attributes, KIND, path)
    try:
        return Trace(from_parts(parts, attributes))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and record the trace again") from error
