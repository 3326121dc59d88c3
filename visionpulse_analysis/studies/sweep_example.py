"""A small sweep for a notebook: made once per model, code and settings, and read from the cache after that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from visionpulse_analysis.models import load
from visionpulse_analysis.studies.collect import _code_hash, cache_folder
from visionpulse_analysis.sweeps.config import SweepConfig
from visionpulse_analysis.sweeps.results import Sweep
from visionpulse_analysis.sweeps.running import run


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
) -> Sweep:
    """Sweep generated scenes: dense, and every pruner at every budget. What an interrupted call has done is kept.

    Parameters
    ----------
    pruners : names of pruners that take a ``budget``
    budgets : shares of the patches, each in (0, 1]
    workers : int
        As `sweeps.running.run`; 0: in this process.
    trust_remote_code : bool
        As `load`.

    Raises
    ------
    ValueError
        As `SweepConfig.from_plain`.
    """
    arms = [{"name": p, "budget": b, "label": f"{p} {100 * b:g} %"} for p in pruners for b in budgets]
    plain = {
        "samples": {"scenes": {"n": n_samples, "seed": seed}},
        "models": [{"name": model, "trust_remote_code": trust_remote_code}],
        "pruners": ["dense", *arms],
        "decode": {"layers": "anchor", "max_new_tokens": max_new_tokens, "batch_size": batch_size},
    }
    weights = load(model, trust_remote_code=trust_remote_code).weights_hash
    made_with = [weights, version("torch"), version("transformers"), _code_hash()]
    key = hashlib.sha256(json.dumps([plain, made_with]).encode()).hexdigest()[:16]
    out = cache_folder() / f"sweep-{key}"
    run(SweepConfig.from_plain({**plain, "out": str(out)}, folder=Path()), workers=workers, progress=False)
    return Sweep(out)
