"""Tables and figures of a finished sweep, by pruner. Needs the sweep's folder, no model and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.figures import DOUBLE
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap, judge, proportion_interval
from visionpulse_analysis.studies.shared.intervals import draw_curve, draw_named, scaled, show
from visionpulse_analysis.studies.shared.paired import (
    PairedLengths,
    PairedRight,
    mean_of_ended,
    paired_lengths,
    paired_right,
    plain,
)
from visionpulse_analysis.studies.trace_length.report import about_cut_off, show_p

DENSE = "dense"


@dataclass(frozen=True)
class ArmResult:
    """One pruner of a sweep; intervals resample samples.

    n, failed, n_cut_off : traces done, failed, and cut off at the limit of tokens. kept : mean share of the patches
    visible. cut_off : share of the traces cut off. length : mean tokens of those that ended, NaN where none did.
    accuracy : None where an answer is not known.
    lengths, right : against dense, over pairs of equal sample and seed; None without a pair, and `right` without known
    answers. score : mean score, 0..1, where some are neither 0 nor 1 (as under ANLS) and all are known. judges : the
    names of those who told right from wrong. judged : "length", "cut off" and "accuracy" -> their verdicts among all
    pruners of the sweep.
    """

    n: int
    failed: int
    n_cut_off: int
    kept: float
    cut_off: Estimate
    length: Estimate
    accuracy: Estimate | None
    lengths: PairedLengths | None = None
    right: PairedRight | None = None
    score: Estimate | None = None
    judges: tuple[str, ...] = ()
    judged: dict[str, Claim] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain(vars(self))


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
        Rows of several models, no finished row, or no column that says which traces were cut off.
    """
    if "finished" not in table:
        raise ValueError('the table has no column "finished", which says which traces were cut off; give `Sweep.table`')
    models = table["model"].unique().tolist()
    if len(models) > 1:
        raise ValueError(f"rows of {len(models)} models ({', '.join(models)}); choose those of one")
    done = table[table["status"] == "done"]
    if done.empty:
        raise ValueError("no finished trace in this table")
    failed = table.loc[table["status"] == "failed", "pruner"].value_counts()
    reference = done[done["pruner"] == dense]
    found = {
        name: _result(rows, int(failed.get(name, 0)), None if name == dense else reference)
        for name, rows in done.groupby("pruner", sort=False)
    }
    return _judged(found)


def _result(rows: Any, failed: int, dense: Any) -> ArmResult:
    samples, ended = rows["sample"].to_numpy(), rows["finished"].to_numpy(bool)
    known = rows["right"].notna().all()
    pairs: Any = pd.DataFrame() if dense is None else dense.merge(rows, on=["sample", "seed"], suffixes=("_a", "_b"))
    lengths = right = None
    if len(pairs):
        a, b = (
            [pairs[f"{name}_{side}"].to_numpy(float, na_value=np.nan) for name in ("tokens", "finished", "right")]
            for side in "ab"
        )
        lengths = paired_lengths(a[0], b[0], a[1], b[1], pairs["sample"])
        if np.isfinite([a[2], b[2]]).all():
            right = paired_right(a[2], b[2], pairs["sample"])
    return ArmResult(
        n=len(rows),
        failed=failed,
        n_cut_off=int((~ended).sum()),
        kept=float(rows["kept"].mean()),
        cut_off=proportion_interval(~ended, samples),
        length=mean_of_ended(rows["tokens"].to_numpy(float), ended, samples),
        accuracy=proportion_interval(rows["right"].to_numpy(float), samples) if known else None,
        lengths=lengths,
        right=right,
        score=_mean_score(rows),
        judges=tuple(rows["judge"].dropna().unique()) if "judge" in rows else (),
    )


def _mean_score(rows: Any) -> Estimate | None:
    scores = rows["score"].to_numpy(float) if "score" in rows else np.full(len(rows), np.nan)
    graded = np.isfinite(scores).all() and not np.isin(scores, (0, 1)).all()
    return cluster_bootstrap(scores, rows["sample"].to_numpy()) if graded else None


def _judged(results: dict[str, ArmResult]) -> dict[str, ArmResult]:
    """The same with verdicts: length, cut-offs and accuracy of all pruners are one family of tests."""
    tests: dict[tuple[str, str], tuple[Estimate, float]] = {}
    for name, arm in results.items():
        if arm.lengths is not None:
            tests[name, "length"] = arm.lengths.length, arm.lengths.p
            tests[name, "cut off"] = arm.lengths.cut_off.change, arm.lengths.cut_off.p
        if arm.right is not None:
            tests[name, "accuracy"] = arm.right.change, arm.right.p
    found = judge(tests, "length, cut-offs and accuracy of every pruner of the sweep")
    return {
        name: replace(arm, judged={what: verdict for (whose, what), verdict in found.items() if whose == name})
        for name, arm in results.items()
    }


def results_table(results: Mapping[str, ArmResult]) -> pd.DataFrame:
    """One row per pruner, as text with intervals."""
    rows = {}
    for name, arm in results.items():
        lengths, right = arm.lengths, arm.right
        rows[name] = {
            "traces": arm.n,
            "failed": arm.failed,
            "kept": f"{100 * arm.kept:.1f} %",
            "cut off": f"{arm.n_cut_off} of {arm.n}",
            "tokens, ended": show(arm.length, 1, "", sign=False),
            "pairs that ended": "" if lengths is None else f"{lengths.n_both} of {lengths.n_pairs}",
            "length against dense": show(lengths and lengths.length),
            "p, length": show_p(arm.judged.get("length")),
            "accuracy": show(arm.accuracy, sign=False),
            "accuracy against dense": show(right and right.change, unit=" points"),
            "p, accuracy": show_p(arm.judged.get("accuracy")),
        }
        if any(one.score is not None for one in results.values()):
            rows[name]["score"] = show(arm.score, sign=False)
        if any(one.judges for one in results.values()):
            rows[name]["judge"] = ", ".join(arm.judges)
    return pd.DataFrame.from_dict(rows, orient="index")


def pruners_page(results: Mapping[str, ArmResult], dense: str = DENSE) -> Figure:
    """Draw accuracy (where answers are known), length of the traces that ended and, where some were not, cut-offs.

    One row per pruner; dashed: dense.
    """
    panels: dict[str, dict[str, Estimate]] = {}
    known = {name: scaled(arm.accuracy) for name, arm in results.items() if arm.accuracy is not None}
    if known:
        panels["accuracy (%)"] = known
    if any(arm.n_cut_off < arm.n for arm in results.values()):
        panels["tokens of traces that ended"] = {name: arm.length for name, arm in results.items()}
    if any(arm.n_cut_off for arm in results.values()):
        panels["cut off (%)"] = {name: scaled(arm.cut_off) for name, arm in results.items()}
    fig, axes = figures.new_figure(DOUBLE, 0.26 * len(results) + 0.7, 1, len(panels), sharey=True)
    for ax, (label, intervals) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        reference = intervals[dense].value if dense in intervals else None
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


def step_curves(values: xr.DataArray) -> dict[str, tuple[np.ndarray, list[Estimate]]]:
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
            mean = cluster_bootstrap(rows[there, step], samples[mine][there], n_resamples=500, method="studentized")
            intervals.append(mean)
        curves[name] = (steps, intervals)
    return curves


def steps_page(panels: Mapping[str, Mapping[str, tuple[np.ndarray, list[Estimate]]]]) -> Figure:
    """Draw curves over the steps, one line per pruner, one panel per y label."""
    fig, axes = figures.new_figure(DOUBLE, 2.6, 1, len(panels), sharex=True)
    for ax, (label, curves) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for name, (steps, intervals) in curves.items():
            draw_curve(ax, steps.tolist(), intervals, label=name)
        ax.set(xlabel="step", ylabel=label, ylim=(0, None))
    figures.draw_legend(axes)
    return fig


def verdicts(results: Mapping[str, ArmResult], dense: str = DENSE) -> str:
    """What was found, one sentence per pruner, chosen by its tests among all of the sweep; Markdown."""
    lines = []
    for name, arm in results.items():
        if name == dense:
            continue
        said = [_about(arm.judged.get("accuracy"), "accuracy", "points", "loses", "gains")]
        length = _about(arm.judged.get("length"), "length", "%", "shortens traces by", "lengthens traces by")
        cut = ""
        if arm.lengths and arm.lengths.n_both < arm.lengths.n_pairs:
            length += f" over the {arm.lengths.n_both} of {arm.lengths.n_pairs} pairs that ended"
            cut = about_cut_off(arm.lengths, arm.judged)
        lines.append(f"- **{name}** (keeps {100 * arm.kept:.1f} %): {'; '.join([*said, length])}.{cut}")
    sizes = {verdict.size for arm in results.values() for verdict in arm.judged.values()}
    if sizes:
        lines.append(
            f"\nGains and losses are told by exact tests adjusted together (Holm), {sizes.pop()} of them: length, "
            "cut-offs and, where answers are known, accuracy of every pruner. Intervals are those of each alone."
        )
    return "\n".join(lines) or f"There is no pruner beside {dense!r} to compare."


def _about(verdict: Claim | None, what: str, unit: str, less: str, more: str) -> str:
    if verdict is None or np.isnan(verdict.estimate.value):
        return f"{what} cannot be compared"
    shown = show(verdict.estimate, unit=f" {unit}")
    if verdict.decision == "not shown":
        return f"no change of {what} is shown ({shown})"
    return f"{less if verdict.decision == 'falls' else more} {shown.lstrip('+-')}"


def table_hash(table: pd.DataFrame) -> str:
    """sha256 (hex) over a sweep's table, for the provenance of a figure."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()
