"""Reading a sweep, finished or going on: its table, its traces, and all traces as one lazy array. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed

from visionpulse_analysis.experiments.sweeps.tables import COLUMNS, DTYPES, read_header
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.store import TraceStore

STACKED = ("mass", "attention", "kept", "logprob", "k", "budget", "pruner_mass")
LABELS = ("sample", "model", "pruner", "seed", "task", "right")


class Sweep:
    """The folder of a sweep.

    Raises FileNotFoundError: there is no sweep; ValueError: it is damaged or of another version.

    Parameters
    ----------
    folder : str or Path
        The ``out`` of its configuration; the sweep may be going on.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "sweep.json").exists():
            raise FileNotFoundError(f"no sweep at {self.folder}; `visionpulse sweep` makes one")
        read_header(self.folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per finished or failed trace; columns: `tables.DTYPES`. A running sweep writes it every minute.

        Raises FileNotFoundError where none was written yet.
        """
        parquet, plain = self.folder / "table.parquet", self.folder / "table.csv"
        if not parquet.exists() and not plain.exists():
            raise FileNotFoundError(
                f"no table in {self.folder} yet: a running sweep writes it every minute; after a kill, run it again"
            )
        if self.reads_parquet:
            return _completed(pd.read_parquet(parquet))
        types: Any = DTYPES
        empty_is_missing = {name: [""] for name in COLUMNS if name != "answer"}
        table = pd.read_csv(plain, dtype=types, keep_default_na=False, na_values=empty_is_missing)
        table.loc[table["status"] != "done", "answer"] = pd.NA  # an answer may be empty, but not where there is none
        return _completed(table)

    @property
    def reads_parquet(self) -> bool:
        """Whether the table is the Parquet file: where there are both, the newer one is."""
        parquet, plain = self.folder / "table.parquet", self.folder / "table.csv"
        return parquet.exists() and (not plain.exists() or parquet.stat().st_mtime_ns > plain.stat().st_mtime_ns)

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of the table that have a trace."""
        return self.table.loc[lambda table: table["status"] == "done"]

    @cached_property
    def store(self) -> TraceStore:
        """The traces; the table's `id` is their name."""
        return TraceStore(self.folder / "traces")

    def stacked(self, variable: str = "mass", rows: pd.DataFrame | None = None, block: int = 64) -> xr.DataArray:
        """One array over many traces, read from disk block by block when it is computed.

        Raises ValueError: no rows, an unknown variable, or numbers of patches that differ. When computed: a trace has
        other layers than the first one.

        Parameters
        ----------
        variable : str
            "mass" [trace, step, layer], "attention" [trace, step, layer, patch] (mean over heads where several were
            recorded), "kept" [trace, step, patch] (1 where dense), or "logprob", "k", "budget", "pruner_mass"
            [trace, step].
        rows : some rows of `finished`; all by default
        block : traces read together: 1 or more

        Returns
        -------
        float32 DataArray backed by dask
            NaN after the last step of a trace and where a dense trace has no such value. `trace` carries the
            coordinates id, sample, model, pruner, seed, task and right.
        """
        chosen: Any = self.finished if rows is None else rows
        if variable not in STACKED or block < 1 or not len(chosen):
            raise ValueError(
                f"expected rows, a variable of {', '.join(STACKED)} and block >= 1; got {len(chosen)} rows, "
                f"{variable!r} and {block}"
            )
        first = self.store[chosen["id"].iloc[0]]
        inner: dict[str, Any] = {"layer": first.layers} if variable in ("mass", "attention") else {}
        if variable in ("attention", "kept"):
            sizes = sorted(map(int, chosen["patches"].unique()))
            if len(sizes) > 1:
                raise ValueError(f"{variable} has {sizes} patches; choose rows of one size")
            inner["patch"] = np.arange(len(first.grid))
        shape = (int(chosen["tokens"].max()), *map(len, inner.values()))
        ids = chosen["id"].tolist()
        parts = [ids[start : start + block] for start in range(0, len(ids), block)]
        read = delayed(_read_block, pure=True)
        arrays = [
            da.from_delayed(
                read(str(self.folder / "traces"), part, variable, shape, first.layers), (len(part), *shape), np.float32
            )
            for part in parts
        ]
        labels = {name: ("trace", chosen[name].to_numpy(dtype=object)) for name in LABELS}
        return xr.DataArray(
            da.concatenate(arrays),
            dims=("trace", "step", *inner),
            coords={"trace": ids, "step": np.arange(shape[0]), **inner, **labels},
            name=variable,
        )


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """With the columns that a table of an older version lacks, empty."""
    return table.reindex(columns=[*COLUMNS]).astype(DTYPES)


def _read_block(store: str, ids: Sequence[str], variable: str, shape: tuple[int, ...], layers: list[int]) -> np.ndarray:
    """One variable of some traces: float32 [trace, *shape], NaN where a trace has nothing."""
    block = np.full((len(ids), *shape), np.nan, np.float32)
    traces = TraceStore(store)
    for place, id in enumerate(ids):
        trace = traces[id]
        if trace.layers != layers and variable in ("mass", "attention"):
            raise ValueError(f"{id} has layers {trace.layers}, the first trace {layers}; choose rows of one model")
        values = _values(trace, variable)
        if values is not None:
            block[place, : len(trace)] = values
    return block


def _values(trace: Trace, variable: str) -> np.ndarray | None:
    if variable == "kept" and trace.kept is None:
        return np.ones((len(trace), len(trace.grid)), np.float32)
    if variable not in trace.dataset:
        return None
    values = trace.dataset[variable].values.astype(np.float32)
    heads = trace.heads is not None and variable in ("mass", "attention")
    return values.mean(axis=2) if heads else values
