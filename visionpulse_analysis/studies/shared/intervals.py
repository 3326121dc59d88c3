"""An estimate as text in a table; what else was here an `Estimate` does itself, or `figures` with it."""

from __future__ import annotations

from visionpulse_analysis.figures import draw_curve, draw_estimates
from visionpulse_analysis.figures.plots import ends
from visionpulse_analysis.metrics.estimate import UNKNOWN, Estimate

__all__ = ["draw_curve", "draw_named", "ends", "scaled", "show"]

draw_named = draw_estimates


def scaled(interval: Estimate) -> Estimate:
    """In percent."""
    return 100 * interval


def show(interval: Estimate | None, scale: float = 100.0, unit: str = " %", sign: bool = True) -> str:
    """An interval as text, such as ``-11.2 % [-14.0, -8.1]``, or that there is none where it was refused."""
    return UNKNOWN if interval is None else f"{scale * interval:{'+' if sign else ''}.1f{unit}}"
