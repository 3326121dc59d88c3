"""Tables and figures of a finished sweep, by pruner. Needs the sweep's folder, no model and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.statistics import Interval, cluster_bootstrap, paired_difference
from visionpulse_analysis.studies.drawing import draw_curve, draw_named, scaled, show

DENSE = "dense"


@dataclass(frozen=True)
class ArmResult:
    """One pruner of a sweep; intervals resample samples.

    kept : mean share of the patches visible. accuracy and its change are None where no answer is known, changes
    (pruned minus dense, of length relative to dense, over pairs of equal sample and seed) where there is no dense arm.
    """

    n: int
    failed: int
    kept: float
    length: Interval
    accuracy: Interval | None
    change_of_length: Interval | None
    change_of_accuracy: Interval | None

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        intervals = ("length", "accuracy", "change_of_length", "change_of_accuracy")
        return {"n": self.n, "failed": self.failed, "kept": self.kept} | {
            name: None if (interval := getattr(self, name)) is None else interval.to_dict() for name in intervals
        }


def compare_pruners(table: Any, dense: str = DENSE) -> dict[str, ArmResult]:
    """Summarise the table of a sweep by pruner, in its order.

    Parameters
    ----------
    table : DataFrame
        `Sweep.table`, of one model.
    dense : str
        The pruner that the others are paired with.

    Raises
    ------
    ValueError
        Rows of several models, or no finished row.
    """
    models = table["model"].unique().tolist()
    if len(models) > 1:
        raise ValueError(f"rows of {len(models)} models ({', '.join(models)}); choose those of one")
    done = table[table["status"] == "done"]
    if done.empty:
        raise ValueError("no finished trace in this table")
    failed = table.loc[table["status"] == "failed", "pruner"].value_counts()
    reference = done[done["pruner"] == dense]
    return {
        name: _result(rows, int(failed.get(name, 0)), None if name == dense else reference)
        for name, rows in done.groupby("pruner", sort=False)
    }


def _result(rows: Any, failed: int, dense: Any) -> ArmResult:
    known = rows["right"].notna().all()
    pairs: Any = pd.DataFrame() if dense is None else dense.merge(rows, on=["sample", "seed"], suffixes=("_a", "_b"))
    change: dict[str, Interval | None] = {"tokens": None, "right": None}
    for column in change:
        if len(pairs) and (column == "tokens" or pairs[["right_a", "right_b"]].notna().all(axis=None)):
            before, after = (pairs[f"{column}_{side}"].to_numpy(float) for side in "ab")
            change[column] = paired_difference(before, after, pairs["sample"], relative=column == "tokens")
    return ArmResult(
        n=len(rows),
        failed=failed,
        kept=float(rows["kept"].mean()),
        length=cluster_bootstrap(rows["tokens"].to_numpy(float), rows["sample"]),
        accuracy=cluster_bootstrap(rows["right"].to_numpy(float), rows["sample"]) if known else None,
        change_of_length=change["tokens"],
        change_of_accuracy=change["right"],
    )


def results_table(results: Mapping[str, ArmResult]) -> pd.DataFrame:
    """One row per pruner, as text with intervals."""
    rows = {}
    for name, arm in results.items():
        rows[name] = {"traces": arm.n, "failed": arm.failed, "kept": f"{100 * arm.kept:.1f} %"}
        rows[name] |= {
            "tokens": show(arm.length, 1, "", sign=False),
            "length against dense": show(arm.change_of_length),
            "accuracy": show(arm.accuracy, sign=False),
            "accuracy against dense": show(arm.change_of_accuracy, unit=" points"),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def pruners_page(results: Mapping[str, ArmResult], dense: str = DENSE) -> Figure:
    """Draw accuracy (where answers are known), length and share kept, one row per pruner; dashed: dense."""
    panels: dict[str, dict[str, Interval]] = {}
    known = {name: scaled(arm.accuracy) for name, arm in results.items() if arm.accuracy is not None}
    if known:
        panels["accuracy (%)"] = known
    panels["tokens"] = {name: arm.length for name, arm in results.items()}
    fig, axes = figures.new_figure(DOUBLE, 0.26 * len(results) + 0.7, 1, len(panels), sharey=True)
    for ax, (label, intervals) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        reference = intervals[dense].estimate if dense in intervals else None
        draw_named(ax, intervals, reference=reference, xlabel=label)
    return fig


def by_step(stacked: xr.DataArray, measure: Callable[[np.ndarray], np.ndarray]) -> xr.DataArray:
    """Apply a measure of `measures` to every row of attention, lazily.

    Parameters
    ----------
    stacked : float32 [trace, step, layer, patch]
        `Sweep.stacked("attention")`.
    measure : callable, float [row, patch] -> float [row]

    Returns
    -------
    float64 [trace, step, layer], backed by dask
        NaN after the end of a trace.
    """
    return xr.apply_ufunc(
        _of_whole_rows,
        stacked,
        kwargs={"measure": measure},
        input_core_dims=[["patch"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )


def _of_whole_rows(rows: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    whole = ~np.isnan(rows).any(axis=-1)
    result = np.full(whole.shape, np.nan)
    if whole.any():
        result[whole] = measure(rows[whole])
    return result


def step_curves(values: xr.DataArray) -> dict[str, tuple[np.ndarray, list[Interval]]]:
    """Mean over traces at each step, by pruner, as long as half of its traces go on.

    Parameters
    ----------
    values : float [trace, step]
        With the coordinates of `Sweep.stacked`; NaN after the end of a trace.

    Returns
    -------
    dict
        pruner -> steps int [n], intervals [n] that resample samples.
    """
    curves = {}
    pruners, samples = values["pruner"].values, values["sample"].values
    for name in dict.fromkeys(pruners):
        mine = np.flatnonzero(pruners == name)
        rows = values.values[mine]
        steps = np.flatnonzero((~np.isnan(rows)).mean(axis=0) >= 0.5)
        intervals = []
        for step in steps:
            there = ~np.isnan(rows[:, step])
            intervals.append(cluster_bootstrap(rows[there, step], samples[mine][there], n_resamples=500))
        curves[name] = (steps, intervals)
    return curves


def steps_page(panels: Mapping[str, Mapping[str, tuple[np.ndarray, list[Interval]]]]) -> Figure:
    """Draw curves over the steps, one line per pruner, one panel per y label."""
    fig, axes = figures.new_figure(DOUBLE, 2.6, 1, len(panels), sharex=True)
    for ax, (label, curves) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for name, (steps, intervals) in curves.items():
            draw_curve(ax, steps.tolist(), intervals, label=name)
        ax.set(xlabel="step", ylabel=label, ylim=(0, None))
    figures.draw_legend(axes)
    return fig


def verdicts(results: Mapping[str, ArmResult], dense: str = DENSE) -> str:
    """What was found, one sentence per pruner, chosen by its intervals; Markdown."""
    lines = []
    for name, arm in results.items():
        if name == dense:
            continue
        said = [_about(arm.change_of_accuracy, "accuracy", "points", "loses", "gains")]
        said.append(_about(arm.change_of_length, "length", "%", "shortens traces by", "lengthens traces by"))
        lines.append(f"- **{name}** (keeps {100 * arm.kept:.1f} %): {'; '.join(said)}.")
    return "\n".join(lines) or f"There is no pruner beside {dense!r} to compare."


def _about(change: Interval | None, what: str, unit: str, less: str, more: str) -> str:
    if change is None or np.isnan(change.estimate):
        return f"{what} cannot be compared"
    if np.isnan(change.low):
        return f"no {what} differs" if change.estimate == 0 else f"{what} {show(change, unit=f' {unit}')}, no interval"
    if change.low <= 0 <= change.high:
        return f"no change of {what} can be told ({show(change, unit=f' {unit}')})"
    return f"{less if change.high < 0 else more} {show(change, unit=f' {unit}').lstrip('+-')}"


def table_hash(table: pd.DataFrame) -> str:
    """sha256 (hex) over a sweep's table, for the provenance of a figure."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()
