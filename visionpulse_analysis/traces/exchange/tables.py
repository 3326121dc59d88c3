"""A tidy table of traces: one row per trace, step and layer (and head, where heads were recorded)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from visionpulse_analysis._util.files import written_whole
from visionpulse_analysis.metrics.attention import entropy_bits
from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.quantities import BUILT_IN


def step_table(*traces: Trace) -> pd.DataFrame:
    """One row per trace, step and layer (and head), in that order.

    Parameters
    ----------
    *traces : Trace
        One or more.

    Returns
    -------
    DataFrame
        ``id``, ``pruner`` ("dense" without one), ``seed``; ``step``, ``token_id``, ``token``, ``logprob`` (natural
        logarithm); ``layer``, ``head`` (missing for the mean over heads); ``mass`` (0..1, before rounding),
        ``entropy_bits`` (0..log2 n, missing for a row without mass); the strongest patch: ``peak`` (its weight),
        ``peak_image``, ``peak_frame``, ``peak_row``, ``peak_col``; ``budget``, ``k`` (patches kept) and
        ``pruner_mass``, missing where the trace is dense; and each quantity asked for by its name, of those over
        patches ``..._sum`` and ``..._peak``, the largest.

    Raises
    ------
    ValueError
        No trace is given.
    """
    if not traces:
        raise ValueError("no trace given; pass at least one")
    return pd.concat([_table(trace) for trace in traces], ignore_index=True)


def _table(trace: Trace) -> pd.DataFrame:
    attention = trace.attention.values.astype(np.float32)
    attention = attention[:, :, None] if trace.heads is None else attention  # [step, layer, head, patch]
    sizes = attention.shape[:3]
    step, layer, head = (axis.ravel() for axis in np.indices(sizes))
    peak = attention.argmax(axis=-1).ravel() if attention.size else np.zeros(0, int)
    per_step = {"token_id": trace.token_ids, "token": np.array(trace.tokens, object), "logprob": trace.logprobs}
    chosen = {"budget": trace.budget, "k": trace.k, "pruner_mass": trace.pruner_mass}
    grid, pruner = trace.grid, trace.meta.get("pruner")
    columns = {
        "id": str(trace.meta.get("id", "")),
        "pruner": pruner.get("name", "pruned") if isinstance(pruner, dict) else "dense",
        "seed": pd.array([trace.meta.get("seed")] * len(step), "Int64"),
        "step": step,
        **{name: values[step] for name, values in per_step.items()},
        "layer": np.array(trace.layers, int)[layer],
        "head": pd.array([None] * len(step) if trace.heads is None else np.array(trace.heads, int)[head], "Int64"),
        "mass": trace.mass.values.ravel(),
        "entropy_bits": entropy_bits(attention).ravel() if attention.size else np.zeros(0),
        "peak": attention.reshape(-1, attention.shape[-1])[np.arange(len(peak)), peak],
        **{f"peak_{name}": getattr(grid, name)[peak] for name in ("image", "frame", "row", "col")},
        **{name: np.nan if values is None else values.values[step] for name, values in chosen.items()},
        **_further(trace, (step, layer, head)),
    }
    table = pd.DataFrame(columns, index=range(len(step)))
    table["k"] = table["k"].where(table["k"] != -1).astype("Int64")
    return table


def _further(trace: Trace, at: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of the quantities that were asked for: of those over patches, the sum over them and the largest value."""
    columns = {}
    for name in (name for name in trace.quantities if name not in BUILT_IN):
        values = trace.data[name]
        parts = {name: values} if "patch" not in values.dims else {
            f"{name}_sum": values.sum("patch"), f"{name}_peak": values.max("patch")
        }  # fmt: skip
        for column, part in parts.items():
            columns[column] = part.values[at[: part.ndim]]
    return columns


def write_table(traces: Iterable[Trace], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `step_table` as ``.csv``, or as ``.parquet`` where pyarrow is installed.

    In a CSV file every text is quoted, because a token may be a comma, a line break or the word NA.

    Parameters
    ----------
    traces : Traces, one or more
    path : str or Path
        Ends in .csv or .parquet; its folder exists.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        The ending is another one, or no trace is given.
    ImportError
        Parquet without pyarrow; the message says how to install it.
    FileExistsError
        The file exists and `overwrite` is False.
    OSError
        The disk is full or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"a table is written as .csv or .parquet, got {path.name!r}")
    if path.suffix == ".parquet":
        _require_pyarrow()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another place, or say overwrite=True (--overwrite)")
    table = step_table(*traces)
    with written_whole(path) as draft:
        if path.suffix == ".csv":
            table.to_csv(draft, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        else:
            table.to_parquet(draft, engine="pyarrow", index=False)
    return path


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(
            "a .parquet file needs pyarrow, which is not installed: "
            "pip install 'visionpulse-analysis[parquet]', or write a .csv file"
        ) from None
