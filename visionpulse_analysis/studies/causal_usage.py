"""How many patches a step needs: the fewest that leave what it says as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionpulse_analysis.models import VLM
from visionpulse_analysis.studies.replay import Replay, keep_exactly, keep_top
from visionpulse_analysis.traces import Trace


@dataclass(frozen=True)
class CausalUsage:
    """What the steps of one trace need, one entry per step after prefill (1, 2, ...).

    needed : int64 [step], smallest number of patches that passes, see :func:`smallest_k`.
    blind_kl : float64 [step], nats: KL(dense || no patch visible from the anchor layer on).
    steady : bool [step], twice as many patches pass as well; False shows that passing is not monotone there.
    n_patches : int
    """

    needed: np.ndarray
    blind_kl: np.ndarray
    steady: np.ndarray
    n_patches: int


def causal_usage(vlm: VLM, traces: Sequence[Trace], layer: int, level: float) -> list[CausalUsage]:
    """Measure what every step after prefill of dense traces needs, each step pruned alone.

    Parameters
    ----------
    layer : int
        The anchor layer: patches are ranked there and hidden from there on.
    level : float
        KL in nats that counts as unchanged, above 0.

    Raises
    ------
    ValueError
        As :class:`Replay` and :func:`smallest_k`.
    """
    results = []
    for trace in traces:
        replay = Replay(vlm, trace)
        needed = smallest_k(replay, layer, level)
        nothing = np.zeros((len(needed), replay.n_patches), dtype=bool)
        blind = replay.run(replay.steps, layer, keep_exactly(nothing))
        twice = np.minimum(2 * needed, replay.n_patches)
        steady = replay.run(replay.steps, layer, keep_top(twice)).kl <= level
        results.append(CausalUsage(needed, blind.kl, steady, replay.n_patches))
    return results


def smallest_k(replay: Replay, layer: int, level: float, steps: np.ndarray | None = None) -> np.ndarray:
    """Smallest number of patches with which a step still says what it says, by bisection.

    A step passes with K patches when pruning it alone to its top K, from ``layer`` on, leaves its next-token
    distribution within ``level`` of the dense one. The result passes, and one patch fewer does not (or it is
    1, the least that a pruner keeps). Where passing is not monotone in K, a lower crossing may be missed.

    Parameters
    ----------
    replay : Replay
    layer : int
        The anchor layer.
    level : float
        KL(dense || pruned) in nats, above 0.
    steps : int [step], optional
        All steps after prefill by default.

    Returns
    -------
    int64 [step], 1 to the number of patches.

    Raises
    ------
    ValueError
        If the level is not above 0, or a step or the layer does not exist.
    """
    if not level > 0:
        raise ValueError(f"level is a KL divergence in nats above 0, got {level}")
    steps = replay.steps if steps is None else np.asarray(steps)
    low, high = np.zeros(len(steps), np.int64), np.full(len(steps), replay.n_patches)
    while (unsettled := np.flatnonzero(high - low > 1)).size:
        middle = (low[unsettled] + high[unsettled]) // 2
        passes = replay.run(steps[unsettled], layer, keep_top(middle)).kl <= level
        high[unsettled[passes]] = middle[passes]
        low[unsettled[~passes]] = middle[~passes]
    return high
