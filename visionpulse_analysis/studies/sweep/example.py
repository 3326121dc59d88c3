"""A small sweep for a notebook: made once per model, code and settings, and read from the cache after that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from visionpulse_analysis.models.loading import load


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

    Parameters
    ----------
    pruners : names of pruners that take a ``budget``
    budgets : shares of the patches, each in (0, 1]
    workers : int
        As `sweeps.running.run`; 0: in this process.
    trust_remote_code, prompt_options
        As `load`.

    Raises
    ------
    ValueError
        As `SweepConfig.from_plain`.
    """
    arms = [{"name": p, "budget": b, "label": f"{p} {100 * b:g} %"} for p in pruners for b in budgets]
    plain = {
        "samples": {"scenes": {"n": n_samples, "seed": seed}},
        "models": [{"name": model, "trust_remote_code": trust_remote_code, "prompt_options": prompt_options or None}],
        "pruners": ["dense", *arms],
        "decode": {"layers": "anchor", "max_new_tokens": max_new_tokens, "batch_size": batch_size},
    }
    state = (_state_elsewhere if workers else _state)(model, trust_remote_code)
    key = None if state is None else part_of_key([plain, state])
    out = folder_of_this_process() / "sweep" if key is None else cache_folder() / f"sweep-{key[:16]}"
    # A folder without a seal is an interrupted call's, and is gone on with.
    if not (is_sealed(out) and is_whole(out)):
        run(SweepConfig.from_plain({**plain, "out": str(out)}, folder=Path()), workers=workers, progress=False)
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
