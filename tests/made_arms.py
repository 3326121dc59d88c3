"""Arms without a model: tables of made-up answers, lengths and ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from visionpulse_analysis.studies.shared.arms import COSTS, DENSE, PURPOSES, Arms, words_on

LIMIT = 96


def made_arm(right: Any, length: Any, finished: Any = True, kept: float = 0.1, seeds: int = 1, **columns: Any) -> Any:
    """Rows of one arm; traces that did not finish have the length of the limit and no right answer.

    right, length, finished, and other columns : one value, or one per sample
    """
    values = {"right": right, "tokens": length, "finished": finished, "detours": 0, **columns}
    given = {name: np.atleast_1d(value) for name, value in values.items()}
    n = max(len(value) for value in given.values())
    rows = pd.DataFrame({name: np.broadcast_to(value, n) for name, value in given.items()})
    rows["tokens"] = rows["tokens"].where(rows["finished"], LIMIT)
    rows["right"] &= rows["finished"]
    rows = rows.assign(sample=range(n), kept=kept, overlap=1.0, **dict.fromkeys(COSTS, 1.0))
    spent = {words_on(purpose): 0 for purpose in PURPOSES} | {words_on("other words"): rows["tokens"]}
    rows = rows.assign(**{name: value for name, value in spent.items() if name not in rows})
    return pd.concat([rows.assign(seed=seed) for seed in range(seeds)], ignore_index=True)


def made_arms(arms: Mapping[str, pd.DataFrame]) -> Arms:
    """These arms, one of them called dense."""
    assert DENSE in arms
    return Arms(pd.concat([rows.assign(arm=name) for name, rows in arms.items()], ignore_index=True))


def first(count: int, of: int = 36) -> np.ndarray:
    """True for the first ``count`` samples."""
    return np.arange(of) < count
