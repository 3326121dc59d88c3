"""How many patches a step needs: the fewest found that leave what it says as it was, added in several orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.decoding.interventions.single_steps import Choose, SingleSteps, keep_exactly, keep_top
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.top_k import float64
from visionpulse_analysis.testbed.truth import parts_said
from visionpulse_analysis.traces import Trace

ANCHOR, LATER, TRUTH = ORDERS = ("anchor's order", "later layers' order", "named object first")

FAR = 1e6  # between two priorities; the logits inside one are far smaller


@dataclass(frozen=True)
class CausalUsage:
    """What the steps of one trace need, one entry per step after prefill (1, 2, ...).

    A number of patches is an upper bound: patches are added in an order, and the last one that matters may stand late
    in it. Orders: the logits at the anchor (what VisionPulse keeps first), the attention summed over the layers from
    the anchor on, and the patches of the object that the step names before all others.
    """

    blind_kl: np.ndarray  # float64 [step], nats: KL(dense || no patch visible from the anchor layer on)
    levels: tuple[float, ...]  # KL in nats that counts as unchanged; the first is the main one
    # [level, step]: 0 where seeing nothing passes, else see :func:`smallest_k`; NaN where the order is not known, as at
    # steps that name no object. Without the orders that are known nowhere.
    needed: dict[str, np.ndarray]
    # bool [step], twice as many patches pass as well, in the anchor's order at the first level; False shows that
    # passing is not monotone there. True where none are needed.
    steady: np.ndarray
    n_patches: int


def causal_usage(
    vlm: VLM, traces: Sequence[Trace], layer: int, levels: Sequence[float], samples: Sequence[Sample] = ()
) -> list[CausalUsage]:
    """Measure what every step after prefill of dense traces needs, each step pruned alone.

    Raises ValueError: no level, or not as many samples as traces; else as :class:`SingleSteps` and :func:`smallest_k`.

    Parameters
    ----------
    layer : the anchor layer: patches are hidden from there on
    levels : KL in nats that counts as unchanged, above 0; all are measured at once
    samples : those of the traces, for the order by truth
    """
    if not len(levels) or (len(samples) and len(samples) != len(traces)):
        raise ValueError(
            f"{len(levels)} levels, {len(traces)} traces and {len(samples)} samples: expected a level or more, and one "
            "sample per trace or none"
        )

    def of_trace(number: int) -> CausalUsage:
        trace, sample = traces[number], samples[number] if len(samples) else None
        return _usage(SingleSteps.of(vlm, trace), trace, layer, tuple(map(float, levels)), sample)

    return over(of_trace, range(len(traces)), "causal usage", "trace")


def _usage(
    replay: SingleSteps, trace: Trace, layer: int, levels: tuple[float, ...], sample: Sample | None
) -> CausalUsage:
    steps = replay.steps
    blind = replay.run(steps, layer, keep_exactly(np.zeros((len(steps), replay.n_patches), dtype=bool))).kl
    orders = _priorities(trace, layer, sample)
    known = {name: (order >= 0).all(axis=1) for name, order in orders.items()}
    # One bisection for all orders and levels: the rows of a forward cost little, the forward much.
    jobs = [
        (name, place, step)
        for name in orders
        for place, level in enumerate(levels)
        for step in steps[known[name] & (blind > level)]
    ]
    needed = {name: np.where(known[name], np.zeros((len(levels), 1)), np.nan) for name in orders}
    steady = np.ones(len(steps), dtype=bool)
    if jobs:
        priority = np.array([orders[name][step - 1] for name, _, step in jobs])
        allowed = np.array([levels[place] for _, place, _ in jobs])
        found = smallest_k(replay, layer, allowed, np.array([step for _, _, step in jobs]), priority)
        for (name, place, step), count in zip(jobs, found, strict=True):
            needed[name][place, step - 1] = count
    most = needed[ANCHOR][0].astype(int)
    if most.any():
        examined = np.flatnonzero(most)
        twice = np.minimum(2 * most[examined], replay.n_patches)
        steady[examined] = replay.run(steps[examined], layer, keep_top(twice)).kl <= levels[0]
    return CausalUsage(blind, levels, needed, steady, replay.n_patches)


def _priorities(trace: Trace, layer: int, sample: Sample | None) -> dict[str, np.ndarray]:
    """By order, the steps after prefill: float64 [step, patch], the higher the earlier, -1 where it is not known.

    Patches of one priority are added in the anchor's order.
    """
    found = {ANCHOR: np.zeros((len(trace) - 1, len(trace.grid)))}
    later = [place for place, number in enumerate(trace.layers) if number >= layer]
    if len(later) > 1:
        attention = trace.attention.values[1:, later].astype(np.float32)
        attention = attention if trace.heads is None else attention.mean(axis=2)
        found[LATER] = rankdata(attention.sum(axis=1), method="dense", axis=1)
    if sample is not None and sample.scene is not None:
        shown = parts_said(sample.scene, sample.truth, trace.tokens, trace.grid)[1:]
        # A step that names nothing of the picture has no order.
        found[TRUTH] = np.where(shown.any(axis=1, keepdims=True), shown.astype(float), -1.0)
    return found


def smallest_k(
    replay: SingleSteps,
    layer: int,
    level: float | np.ndarray,
    steps: np.ndarray | None = None,
    priority: np.ndarray | None = None,
) -> np.ndarray:
    """Smallest number of patches found with which a step still says what it says, by bisection.

    A step passes with K patches when pruning it alone to the first K of an order, from ``layer`` on, leaves its next-
    token distribution within ``level`` of the dense one. The result passes, and one patch fewer does not (or it is 1,
    the least that a pruner keeps). Where passing is not monotone in K, a lower crossing may be missed; and another
    order may need fewer: an upper bound of what the step needs. Raises ValueError: if a level is not above 0, or a step
    or the layer does not exist.

    Parameters
    ----------
    replay : SingleSteps
    layer : the anchor layer
    level : float, or float [step]
        KL(dense || pruned) in nats, above 0.
    steps : int [step], optional
        All steps after prefill by default; may name a step several times.
    priority : float [step, patch], optional
        Higher ones come first, those that are equal in the order of the head-mean logits at ``layer``, as all do
        without one. Whole numbers.

    Returns
    -------
    int64 [step], 1 to the number of patches.
    """
    steps = replay.steps if steps is None else np.asarray(steps)
    levels = np.broadcast_to(np.asarray(level, dtype=np.float64), steps.shape)
    if not (levels > 0).all():
        raise ValueError(f"level is a KL divergence in nats above 0, got {level}")
    low, high = np.zeros(len(steps), np.int64), np.full(len(steps), replay.n_patches)
    while (unsettled := np.flatnonzero(high - low > 1)).size:
        middle = (low[unsettled] + high[unsettled]) // 2
        choose = keep_top(middle) if priority is None else _keep_first(middle, priority[unsettled])
        passes = replay.run(steps[unsettled], layer, choose).kl <= levels[unsettled]
        high[unsettled[passes]] = middle[passes]
        low[unsettled[~passes]] = middle[~passes]
    return high


def _keep_first(k: np.ndarray, priority: np.ndarray) -> Choose:
    """Keep the first ``k`` int [row] patches by priority, then by the scores."""
    top = keep_top(k)

    def choose(scores: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        exact = float64(scores)
        return top(exact + FAR * torch.from_numpy(priority[rows]).to(exact), rows).to(scores.device)

    return choose
