"""A sweep by pruner and step by step, and a small one to look at: made once, and read from the cache after that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from visionpulse_analysis._util.files import cache_folder
from visionpulse_analysis.experiments.cache import (
    folder_of_this_process,
    is_sealed,
    is_whole,
    part_of_key,
    seal,
    state_of,
)
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.running import run
from visionpulse_analysis.experiments.sweeps.worker import run_batch
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap, proportion_interval
from visionpulse_analysis.models.loading import load
from visionpulse_analysis.studies.shared.arms import DENSE, Change, compare, judge_changes, mean_of_ended


def example_sweep(
    model: str,
    pruners: Sequence[str],
    budgets: Sequence[float],
    *,
    n_samples: int,
    seed: int = 0,
    max_new_tokens: int = 160,
    batch_size: int = 8,
    workers: int = 0,
    trust_remote_code: bool = False,
    prompt_options: Mapping[str, Any] | None = None,
) -> Sweep:
    """Sweep generated scenes: dense, and every pruner at every budget. What an interrupted call has done is kept.

    Raises ValueError: as `SweepConfig.from_plain`.

    Parameters
    ----------
    pruners : names of pruners that take a ``budget``
    budgets : shares of the patches, each in (0, 1]
    workers : As `sweeps.running.run`; 0: in this process
    trust_remote_code, prompt_options
        As `load`.
    """
    arms = [{"name": p, "budget": b, "label": f"{p} {100 * b:g} %"} for p in pruners for b in budgets]
    plain = {
        "samples": {"scenes": {"n": n_samples, "seed": seed}},
        "models": [{"name": model, "trust_remote_code": trust_remote_code, "prompt_options": prompt_options or None}],
        "pruners": ["dense", *arms],
        "decode": {"layers": "anchor", "max_new_tokens": max_new_tokens, "batch_size": batch_size},
    }
    state = (_state_elsewhere if workers else _state)(model, trust_remote_code)
    # No key: what it depends on cannot be told, so it is made anew and goes with the process.
    key = None if state is None else part_of_key([plain, state])
    out = folder_of_this_process() / "sweep" if key is None else cache_folder() / f"sweep-{key[:16]}"
    # A folder without a seal is an interrupted call's, and is gone on with.
    if not (is_sealed(out) and is_whole(out)):
        run(SweepConfig.from_plain({**plain, "out": str(out)}, folder=Path()), workers=workers)
        if key is not None:
            seal(out)
    return Sweep(out)


def _state(model: str, trust_remote_code: bool) -> str | None:
    return state_of(load(model, trust_remote_code=trust_remote_code), run, run_batch)


def _state_elsewhere(model: str, trust_remote_code: bool) -> str | None:
    """What a new process, as the workers are, would run: its files may have changed since this one loaded them."""
    asked = f"from {__name__} import _state; print(_state({model!r}, {trust_remote_code!r}))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a new process cannot load {model!r}, so workers cannot either:\n{done.stderr[-2000:]}")
    told = done.stdout.split()[-1]
    return None if told == "None" else told


@dataclass(frozen=True)
class ArmResult:
    """One pruner of a sweep; intervals resample samples."""

    # n, failed, n_cut_off: traces done, failed, and cut off at the limit of tokens
    n: int
    failed: int
    n_cut_off: int
    kept: float  # mean share of the patches visible
    cut_off: Estimate  # share of the traces cut off
    length: Estimate  # mean tokens of those that ended, NaN where none did
    accuracy: Estimate | None  # None where an answer is not known
    change: Change | None = None  # against dense, over pairs of equal sample and seed; None without a pair
    score: Estimate | None = None  # mean score, 0..1, where some are neither 0 nor 1 (as under ANLS) and all are known
    judges: tuple[str, ...] = ()  # the names of those who told right from wrong
    # Accuracy, length and cut-offs -> their verdicts among all pruners of the sweep
    judged: dict[str, Claim] = field(default_factory=dict)


def compare_pruners(table: Any, dense: str = DENSE) -> dict[str, ArmResult]:
    """Summarise the table of a sweep by pruner, in its order.

    Raises ValueError: rows of several models, no finished row, or no column that says which traces were cut off.

    Parameters
    ----------
    table : `Sweep.table`, of one model
    dense : the pruner that the others are paired with
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
    reference, found = done[done["pruner"] == dense], {}
    for name, rows in done.groupby("pruner", sort=False):
        samples, ended = rows["sample"].to_numpy(), rows["finished"].to_numpy(bool)
        scores = rows["score"].to_numpy(float) if "score" in rows else np.array([np.nan])
        graded = np.isfinite(scores).all() and not np.isin(scores, (0, 1)).all()
        known = rows["right"].notna().all()
        paired = name != dense and len(reference.merge(rows, on=["sample", "seed"]))
        found[name] = ArmResult(
            n=len(rows),
            failed=int(failed.get(name, 0)),
            n_cut_off=int((~ended).sum()),
            kept=float(rows["kept"].mean()),
            cut_off=proportion_interval(~ended, samples),
            length=mean_of_ended(rows),
            accuracy=proportion_interval(rows["right"].to_numpy(float), samples) if known else None,
            change=compare(reference, rows) if paired else None,
            score=cluster_bootstrap(scores, samples) if graded else None,
            judges=tuple(rows["judge"].dropna().unique()) if "judge" in rows else (),
        )
    changes = {name: arm.change for name, arm in found.items() if arm.change is not None}
    judged = judge_changes(changes, "length, cut-offs and accuracy of every pruner of the sweep")
    return {name: replace(arm, judged=judged.get(name, {})) for name, arm in found.items()}


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
    for name, own in values.groupby("pruner"):
        rows, samples = own.values, own["sample"].values
        there = ~np.isnan(rows)
        steps = np.flatnonzero(there.mean(axis=0) >= 0.5)
        curves[str(name)] = (
            steps,
            [
                cluster_bootstrap(
                    rows[there[:, step], step], samples[there[:, step]], n_resamples=500, method="studentized"
                )
                for step in steps
            ],
        )
    return {name: curves[name] for name in dict.fromkeys(values["pruner"].values.tolist())}
