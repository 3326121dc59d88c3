"""One array of a stored trace: read when it is used, and never other numbers than were written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from xarray.backends.common import BackendArray
from xarray.core import indexing

from visionpulse_analysis._util.files import is_foreign
from visionpulse_analysis._util.later import zarr
from visionpulse_analysis.traces.zarr_group import metadata_sha256, version_of

CODECS = {"bytes", "zstd"}


class StoredArray(BackendArray):
    """One zarr array on disk, read when indexed; every failure names the folder."""

    def __init__(self, folder: Path, version: tuple[int, int], digest: str | None) -> None:
        self.folder, self.version = folder, version
        try:
            if digest is not None and digest != metadata_sha256(folder):
                raise ValueError("it was changed")
            # Opening with zarr costs a millisecond per array; most are never read.
            metadata = json.loads((folder / "zarr.json").read_text("utf-8"))
            self.shape, self.dtype = tuple(metadata["shape"]), np.dtype(metadata["data_type"])
            codecs = {codec["name"] for codec in metadata["codecs"]}
            sizes = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            counts = [-(-n // size) for n, size in zip(self.shape, sizes, strict=True)]
            # What other programs leave is no chunk, and hides no missing one.
            found = {file.name for file in folder.iterdir() if not is_foreign(file.name)} - {"zarr.json"}
        except Exception as error:
            raise self._damaged(f"its zarr.json cannot be read: {error}") from error
        if not codecs <= CODECS:
            raise self._damaged(f"its codecs are {sorted(codecs)}, expected {sorted(CODECS)}")
        # zarr would read a missing chunk as zeros. Counted first: a damaged shape may ask for any number.
        if len(found) != math.prod(counts):
            raise self._damaged(f"it has {len(found)} chunk files, expected {math.prod(counts)}")
        expected = {".".join(map(str, place)) for place in np.ndindex(*counts)}
        if found != expected:
            raise self._damaged(f"its chunk files are {sorted(found)[:3]}..., expected {sorted(expected)[:3]}...")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> Any:
        try:
            # Version 3 only: in version 2, metadata could name a codec that unpickles.
            values = zarr.open_array(self.folder, mode="r", zarr_format=3).oindex[key]
            same = version_of(self.folder.parent) == self.version
        except Exception as error:
            raise self._damaged(f"a chunk cannot be decoded: {error}") from error
        if not same:
            raise ValueError(f"{self.folder.parent} was replaced by another trace since it was opened; open it again")
        return values

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.folder} is damaged ({why}); restore it, or delete the trace and record it again")
