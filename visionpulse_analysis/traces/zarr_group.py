"""Named arrays and JSON attributes in one zarr group: written whole or not at all, checked when read."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visionpulse_analysis._util.files import disk_error
from visionpulse_analysis._util.later import xr, zarr

FORMAT_VERSION = 1
KIND = "visionpulse trace"
_CHUNK_BYTES = 16 * 2**20


class StoreVersionError(ValueError):
    """The file was written in a format version that this package does not read."""


def check_format(attributes: Any, kind: str, path: Path) -> None:
    """Raise unless the attributes found at `path` name this kind of file and a version that can be read.

    Raises ValueError: the file is of another kind; StoreVersionError: the file is of another version.
    """
    if not isinstance(attributes, dict) or attributes.get("kind") != kind:
        raise ValueError(f"{path} is not a {kind}")
    found = attributes.get("format_version")
    if found != FORMAT_VERSION:
        raise StoreVersionError(
            f"{path} has format version {found!r}, this package reads version {FORMAT_VERSION}; "
            "open it with the version of visionpulse_analysis that wrote it, or record it again"
        )


def write_group(path: Path, arrays: Mapping[str, np.ndarray], attributes: dict[str, Any], overwrite: bool) -> None:
    """Write one zarr v3 group with one chunk per array (several along the first axis above 16 MiB).

    The group is built in a hidden sibling folder, its attributes written last, and renamed into place: a reader sees
    the old group, the new one, or none. Raises FileExistsError: `path` exists and `overwrite` is False, or is no trace
    and will not be replaced; OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{path} exists; pass overwrite=True to replace it, or choose another path")
        if _read_attributes(path).get("kind") != KIND:
            raise FileExistsError(f"{path} exists and is not a {KIND}: it is not replaced; choose another path")
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.create_group(temporary, zarr_format=3)
        for name, array in arrays.items():
            _write_array(group, name, array)
        header = {"kind": KIND, "format_version": FORMAT_VERSION, "arrays": list(arrays), "complete": True}
        written = {**header, **attributes, "array_sha256": {name: metadata_sha256(temporary / name) for name in arrays}}
        group.attrs.put({**written, "sha256": _sha256(written)})
        _move_into_place(temporary, path, overwrite)
    except FileExistsError:
        raise
    except OSError as error:
        raise disk_error(error, path, "nothing was written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_array(group: zarr.Group, name: str, array: np.ndarray) -> None:
    from zarr.codecs import ZstdCodec

    per_row = max(1, array[:1].nbytes)
    rows = max(1, min(len(array), _CHUNK_BYTES // per_row))
    stored = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(rows, *(max(1, n) for n in array.shape[1:])),
        compressors=ZstdCodec(level=1, checksum=True),
        # One flat file per chunk, even when all its values are zero: a missing chunk is then always damage.
        chunk_key_encoding={"name": "v2", "separator": "."},
        config={"write_empty_chunks": True},
    )
    if array.size:
        stored[...] = array


def _move_into_place(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite and path.exists() and _exchange(temporary, path):
        return  # the old trace has the temporary name now, and goes with it
    old = temporary.with_name(temporary.name.replace(".tmp-", ".old-"))
    try:
        if overwrite and path.exists():
            path.rename(old)  # a kill before the next line leaves the old trace under this hidden name, whole
        temporary.rename(path)
    except BaseException as error:
        if old.exists() and not path.exists():
            old.rename(path)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(f"{path} was made by another process in the meantime; nothing was written") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one stroke, so that nobody finds neither; False where the system cannot (it is Linux's)."""
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        return ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0
    except (OSError, AttributeError):
        return False


def version_of(path: Path) -> tuple[int, int]:
    """What changes when another trace takes the place of this one."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def metadata_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "zarr.json").read_bytes()).hexdigest()


def read_group(path: Path) -> tuple[dict[str, xr.Variable], dict[str, Any]]:
    """Open a group that `write_group` made: lazily read variables (dims unnamed) and the attributes.

    Raises FileNotFoundError: nothing is there; ValueError: it is not a trace, half-written, or damaged; the file is
    named; StoreVersionError: it is of another version.
    """
    if not path.exists():
        raise FileNotFoundError(f"no trace at {path}")
    from xarray.core import indexing

    from visionpulse_analysis.traces.stored import StoredArray  # a class of xarray's, which takes half a second

    version = version_of(path)
    attributes = _read_attributes(path)
    check_format(attributes, KIND, path)
    if not isinstance(attributes.get("complete"), bool) or not isinstance(attributes.get("arrays"), list):
        raise ValueError(f"{path} was not written to its end; delete it and record it again")
    digests = _checked_digests(attributes, path)
    variables = {}
    for name in attributes["arrays"]:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{path} is damaged ({name!r} is no name of an array); restore it, or record it again")
        array = StoredArray(path / name, version, digests.get(name))
        dims = [f"axis_{axis}" for axis in range(len(array.shape))]
        variables[name] = xr.Variable(dims, indexing.LazilyIndexedArray(array))
    return variables, attributes


def _sha256(attributes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _checked_digests(attributes: dict[str, Any], path: Path) -> dict[str, str]:
    """The checksums of the arrays' metadata; raise ValueError where the attributes do not fit their own checksum.

    Traces of before there were checksums have none. Chunks carry their own.
    """
    found = attributes.pop("sha256", None)
    if found is not None and found != _sha256(attributes):
        raise ValueError(f"{path / 'zarr.json'} is damaged (it was changed); restore it, or record the trace again")
    return attributes.pop("array_sha256", {})


def _read_attributes(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "zarr.json").read_text("utf-8")).get("attributes", {}))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not a {KIND}: it has no zarr.json") from error
    except NotADirectoryError as error:
        raise ValueError(f"{path} is not a {KIND}: it is a file, expected a folder") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path / 'zarr.json'} is damaged ({error}); restore it, or delete the trace and record it again"
        ) from error
