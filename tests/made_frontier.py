"""Frontiers without a model: arms of made-up answers, lengths and ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from visionpulse_analysis.metrics.statistics import cluster_bootstrap
from visionpulse_analysis.studies.frontier.measure import Frontier, Point
from visionpulse_analysis.studies.shared.per_trace import PURPOSES, Arm, Scored
from visionpulse_analysis.studies.trace_length.measure import compare

LIMIT = 96


def made_arm(right: Any, length: Any, finished: Any = True, kept: float = 0.1) -> Arm:
    """An arm of one seed; traces that did not finish have the length of the limit and no right answer."""
    right, length, finished = np.broadcast_arrays(np.asarray(right, bool), np.asarray(length), np.asarray(finished))
    length = np.where(finished, length, LIMIT).astype(int)[None]
    words = np.zeros((len(PURPOSES), *length.shape), int)
    words[-1] = length
    truth = Scored(right=(right & finished)[None], detours=np.zeros(length.shape, int), words=words)
    return Arm(length, np.full(length.shape, kept), finished.astype(bool)[None], truth)


def made_frontier(arms: Mapping[str, Arm]) -> Frontier:
    """The frontier of these arms, one of them called dense."""
    points = {}
    for name, arm in arms.items():
        ids = np.arange(arm.length.shape[1])
        points[name] = Point(
            retention=float(arm.retention.mean()),
            overlap=1.0,
            length=cluster_bootstrap(arm.length[0], ids, method="studentized"),
            accuracy=None if arm.truth is None else cluster_bootstrap(arm.truth.right[0].astype(float), ids),
            change=compare(arms["dense"], arm),
        )
    return Frontier(points, dict(arms), {})


def first(count: int, of: int = 36) -> np.ndarray:
    """True for the first ``count`` samples."""
    return np.arange(of) < count
