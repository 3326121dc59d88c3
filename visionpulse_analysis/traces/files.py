"""Named arrays and JSON attributes in one zarr group: written whole or not at all, checked when read."""

from __future__ import annotations

import errno
import json
import math
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends.common import BackendArray
from xarray.core import indexing
from zarr.codecs import ZstdCodec

FORMAT_VERSION = 1
KIND = "visionpulse trace"
_CHUNK_BYTES = 16 * 2**20


class StoreVersionError(ValueError):
    """The file was written in a format version that this package does not read."""


def check_format(attributes: Any, kind: str, path: Path) -> None:
    """Raise unless the attributes found at `path` name this kind of file and a version that can be read.

    Raises
    ------
    ValueError
        The file is of another kind.
    StoreVersionError
        The file is of another version.
    """
    if not isinstance(attributes, dict) or attributes.get("kind") != kind:
        raise ValueError(f"{path} is not a {kind}")
    found = attributes.get("format_version")
    if found != FORMAT_VERSION:
        raise StoreVersionError(
            f"{path} has format version {found!r}, this package reads version {FORMAT_VERSION}; "
            "open it with the version of visionpulse_analysis that wrote it, or record it again"
        )


def disk_error(error: OSError, path: Path, kept: str) -> OSError:
    """The same kind of OSError with the path, the advice and what was kept, for the user."""
    advice = {
        errno.ENOSPC: "free some space or choose a folder on another disk",
        errno.EDQUOT: "free some space in your quota or choose a folder on another disk",
        errno.EFBIG: "raise the file size limit or choose a folder on another disk",
        errno.EACCES: "choose a folder you may write to",
        errno.EPERM: "choose a folder you may write to",
        errno.EROFS: "choose a folder you may write to",
    }.get(error.errno or 0, "check the disk and the folder")
    return OSError(error.errno, f"cannot write ({error.strerror or error}); {advice}; {kept}", str(path))


def write_group(path: Path, arrays: Mapping[str, np.ndarray], attributes: dict[str, Any], overwrite: bool) -> None:
    """Write one zarr v3 group with one chunk per array (several along the first axis above 16 MiB).

    The group is built in a hidden sibling folder, its attributes written last, and renamed into place:
    a reader sees the old group, the new one, or none.

    Raises
    ------
    FileExistsError
        `path` exists and `overwrite` is False, or is no trace and will not be replaced.
    OSError
        The disk is full or the folder cannot be written; nothing is left behind.
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
        group.attrs.put({**header, **attributes})
        _move_into_place(temporary, path, overwrite)
    except FileExistsError:
        raise
    except OSError as error:
        raise disk_error(error, path, "nothing was written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_array(group: zarr.Group, name: str, array: np.ndarray) -> None:
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
    old = temporary.with_name(temporary.name.replace(".tmp-", ".old-"))
    if overwrite and path.exists():
        path.rename(old)  # a kill before the next line leaves the old trace under this hidden name, whole
    try:
        temporary.rename(path)
    except OSError as error:
        if old.exists():
            old.rename(path)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(f"{path} was made by another process in the meantime; nothing was written") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_group(path: Path) -> tuple[dict[str, xr.Variable], dict[str, Any]]:
    """Open a group that `write_group` made: lazily read variables (dims unnamed) and the attributes.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        It is not a trace, half-written, or damaged; the file is named.
    StoreVersionError
        It is of another version.
    """
    if not path.exists():
        raise FileNotFoundError(f"no trace at {path}")
    attributes = _read_attributes(path)
    check_format(attributes, KIND, path)
    if not isinstance(attributes.get("complete"), bool) or not isinstance(attributes.get("arrays"), list):
        raise ValueError(f"{path} was not written to its end; delete it and record it again")
    variables = {}
    for name in attributes["arrays"]:
        array = StoredArray(path / Path(str(name)).name)
        dims = [f"axis_{axis}" for axis in range(len(array.shape))]
        variables[name] = xr.Variable(dims, indexing.LazilyIndexedArray(array))
    return variables, attributes


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


class StoredArray(BackendArray):
    """One zarr array on disk, read when indexed; every failure names the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            # Opening with zarr costs a millisecond per array; most are never read.
            metadata = json.loads((folder / "zarr.json").read_text("utf-8"))
            self.shape, self.dtype = tuple(metadata["shape"]), np.dtype(metadata["data_type"])
            chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            found = {file.name for file in folder.iterdir()} - {"zarr.json"}
            expected = math.prod(-(-n // chunk) for n, chunk in zip(self.shape, chunks, strict=True))
        except Exception as error:
            raise self._damaged(f"its zarr.json cannot be read: {error}") from error
        # zarr would read a missing chunk as zeros.
        if len(found) != expected:
            raise self._damaged(f"it has {len(found)} chunk files, expected {expected}")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> Any:
        try:
            # Version 3 only: in version 2, metadata could name a codec that unpickles.
            return zarr.open_array(self.folder, mode="r", zarr_format=3).oindex[key]
        except Exception as error:
            raise self._damaged(f"a chunk cannot be decoded: {error}") from error

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.folder} is damaged ({why}); restore it, or delete the trace and record it again")
