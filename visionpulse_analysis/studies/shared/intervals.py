"""Intervals and curves of a study, drawn through `visionpulse_analysis.figures`, or as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from visionpulse_analysis import figures
from visionpulse_analysis.metrics.statistics import ExchangeNull, Interval, ShapeNull


def draw_named(
    ax: Axes, named: Mapping[str, Interval], nulls: Sequence[ShapeNull | ExchangeNull | None] = (), **options
) -> Axes:
    """Draw one interval per row; a missing interval closes on its point, an undefined estimate leaves its row out.

    nulls : as many as intervals, or none; their bands become grey bars (none where undefined).
    """
    defined = [i for i, interval in enumerate(named.values()) if np.isfinite(interval.estimate)]
    if not defined:
        raise ValueError(f"no estimate is defined among {list(named)}: there is nothing to draw")
    names, intervals = [list(named)[i] for i in defined], [list(named.values())[i] for i in defined]
    if nulls:
        # An undefined band is drawn with no width, at its point.
        bands = [_band(nulls[i], interval.estimate) for i, interval in zip(defined, intervals, strict=True)]
        options |= {"null_low": [band[0] for band in bands], "null_high": [band[1] for band in bands]}
    return figures.draw_interval(ax, names, *ends(intervals), **options)


def draw_curve(ax: Axes, x: Sequence[float], intervals: Sequence[Interval], label: str, **options) -> Axes:
    """Draw estimates over x with their band; a missing interval closes on the line."""
    return figures.draw_line_band(ax, np.asarray(x, dtype=float), *ends(intervals), label=label, **options)


def scaled(interval: Interval, factor: float = 100.0) -> Interval:
    """The same interval in other units, by default in percent."""
    ends = {name: factor * getattr(interval, name) for name in ("estimate", "low", "high")}
    return replace(interval, **ends)


def show(interval: Interval | None, scale: float = 100.0, unit: str = " %", sign: bool = True) -> str:
    """An interval as text, such as ``-11.2 % [-14.0, -8.1]``, or that there is none where it was refused."""
    if interval is None or np.isnan(interval.estimate):
        return "not known"
    first = f"{scale * interval.estimate:{'+' if sign else ''}.1f}{unit}"
    if np.isnan(interval.low):
        return f"{first}, no interval" if interval.refused else first
    return f"{first} [{scale * interval.low:.1f}, {scale * interval.high:.1f}]"


def share(interval: dict[str, Any]) -> str:
    """An interval of shares in per cent: "21.3 % [20.6, 22.0]"."""
    bounds = "" if interval["low"] is None else f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    return f"{100 * interval['estimate']:.1f} %{bounds}"


def points(interval: dict[str, Any]) -> str:
    """A difference of shares in percentage points: "21.3 points [20.6, 22.0]"."""
    return share(interval).replace(" %", " points", 1)


def plain(interval: dict[str, Any]) -> str:
    """An interval as it is: "0.21 [0.20, 0.22]"."""
    bounds = "" if interval["low"] is None else f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"{interval['estimate']:.2f}{bounds}"


def nats(interval: dict[str, Any]) -> str:
    """A divergence in two digits, small ones as well: "0.00021 nats [0.00012, 0.00034]"."""
    bounds = "" if interval["low"] is None else f" [{interval['low']:.2g}, {interval['high']:.2g}]"
    return f"{interval['estimate']:.2g} nats{bounds}"


def ends(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, lower and upper ends: three float64 [interval]."""
    estimate = np.array([interval.estimate for interval in intervals])
    low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
    return estimate, np.where(np.isnan(low), estimate, low), np.where(np.isnan(high), estimate, high)


def _band(null: ShapeNull | ExchangeNull | None, point: float) -> tuple[float, float]:
    return (point, point) if null is None or np.isnan(null.low) else (null.low, null.high)
