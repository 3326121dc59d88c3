"""Which patches of a chart show what: the truth of every word that is read off the picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from visionpulse_analysis.testbed.charts.chart import MARKER, Chart
from visionpulse_analysis.testbed.charts.glyphs import HEIGHT, WIDTH
from visionpulse_analysis.testbed.training.packing import PATCH

THINGS = ("label", "tick", "legend", "top", "mark", "line")


@dataclass(frozen=True)
class Thing:
    """A part of a chart.

    kind : "label" of a place, "tick" (its number), "legend" entry of a series, "top" of a mark (a bar's upper end, a
    point), a whole "mark", or a "line" with its points; index : place, tick or mark; series : of a legend entry, top,
    mark or line.
    """

    kind: str
    index: int = 0
    series: int = 0


def patches_of_thing(chart: Chart, thing: Thing) -> np.ndarray:
    """Patches that show a part of a chart: bool [row, col].

    Raises
    ------
    ValueError
        If the chart has no such part.
    """
    if thing.kind not in THINGS:
        raise ValueError(f"unknown part of a chart {thing.kind!r}; known: {', '.join(THINGS)}")
    limit = {
        "label": len(chart.labels),
        "tick": chart.intervals + 1,
        "legend": 1,
        "line": 1,
        "top": chart.n_marks,
        "mark": chart.n_marks,
    }[thing.kind]
    if not (0 <= thing.index < limit and 0 <= thing.series < len(chart.names)):
        raise ValueError(f"a {chart.kind} chart of {chart.n_marks} marks and {len(chart.names)} series has no {thing}")
    shown = np.zeros((chart.side, chart.side), bool)
    for left, top, right, bottom in _boxes(chart, thing):
        # A sliver of less than a pixel shows nothing.
        rows = slice(max(int((top + 0.5) // PATCH), 0), int((bottom - 0.5) // PATCH) + 1)
        shown[rows, max(int((left + 0.5) // PATCH), 0) : int((right - 0.5) // PATCH) + 1] = True
    return shown


def region(chart: Chart, things: Iterable[Thing]) -> np.ndarray:
    """Patches that show any of the things: bool [patch], in the order of the model's patches."""
    shown = np.zeros((chart.side, chart.side), bool)
    for thing in things:
        shown |= patches_of_thing(chart, thing)
    return shown.ravel()


def _boxes(chart: Chart, thing: Thing) -> list[tuple[float, float, float, float]]:
    s, i = thing.series, thing.index
    if thing.kind == "label":
        return _written(chart.label_writing(i))
    if thing.kind == "tick":
        return _written(chart.tick_writing(i))
    if thing.kind == "legend":
        return [chart.swatch(s), *_written(chart.legend_writing(s))] if chart.names[s] else []
    if thing.kind == "line":
        return _along_line(chart.points[s])
    if chart.kind in ("bar", "grouped"):
        left, top, right, bottom = chart.bar(s, i)
        return [(left, top, right, bottom if thing.kind == "mark" else top + 1.0)]
    x, y = chart.points[s, i]
    return _disc(x, y, MARKER)


def _written(writing: list[tuple[str, float, float]]) -> list[tuple[float, float, float, float]]:
    return [(left, top, left + WIDTH, top + HEIGHT) for _, left, top in writing]


def _disc(x: float, y: float, radius: float) -> list[tuple[float, float, float, float]]:
    """Boxes that cover a disc, but not the corners around it."""
    shares = ((1.0, 0.3), (0.7, 0.7), (0.3, 1.0))
    return [(x - a * radius, y - b * radius, x + a * radius, y + b * radius) for a, b in shares]


def _along_line(points: np.ndarray) -> list[tuple[float, float, float, float]]:
    steps = np.linspace(0, 1, 65)[:, None]
    inside = np.concatenate([p + steps * (q - p) for p, q in pairwise(points)])
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in inside] + [box for x, y in points for box in _disc(x, y, MARKER)]
