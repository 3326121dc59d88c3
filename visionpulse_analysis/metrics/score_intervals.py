"""Score intervals of shares: they hold for few values, and where all are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq


def wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval (1927, JASA 22:209) of a share among n values; n may be an effective number, > 0."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # At the ends rounding would leave what is 0 or 1.
    return (0.0 if share == 0 else float(low)), (1.0 if share == 1 else float(high))


def tango(lost: float, won: float, n: float, confidence: float) -> tuple[float, float]:
    """Tango's interval (1998, Statistics in Medicine 17:891) of won - lost, shares of n pairs.

    It inverts the score test of McNemar's table; n may be an effective number, > 0.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))

    def score(difference: float) -> float:
        # The share of lost pairs that is most likely if the true difference is this one: a root of a quadratic.
        b = (2 - won + lost) * difference - won - lost
        most_likely = (np.sqrt(b * b + 8 * lost * difference * (1 - difference)) - b) / 4
        variance = 2 * most_likely + difference * (1 - difference)
        distance = won - lost - difference
        return distance / np.sqrt(max(variance, 1e-300) / n) if distance else 0.0

    found, edge = won - lost, 1 - 1e-12
    low = -1.0 if found <= -edge or score(-edge) < z else _root(lambda d: score(d) - z, -edge, found)
    high = 1.0 if found >= edge or score(edge) > -z else _root(lambda d: score(d) + z, found, edge)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    found: Any = brentq(function, low, high)
    return float(found)
