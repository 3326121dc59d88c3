"""Charts with known truth: bars, grouped bars, lines and clouds of points, determined by an integer seed.

Lengths are in pixels, y pointing down, unless a name says patches. A value axis has ``intervals`` equal steps between
ticks, and a step has four parts: a mark's *level* counts parts, so that its value is ``level * unit``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from visionpulse_analysis.testbed.training.packing import PATCH

PARTS = 4  # of a step between ticks
KINDS = ("bar", "grouped", "line", "scatter")
# Okabe and Ito's colours (2008), which colour-blind readers tell apart, less yellow (too light) and black (the ink).
COLOURS: dict[str, tuple[int, int, int]] = {
    "orange": (230, 159, 0),
    "cyan": (86, 180, 233),
    "green": (0, 158, 115),
    "blue": (0, 114, 178),
    "red": (213, 94, 0),
    "pink": (204, 121, 167),
}
LABELS = {"letters": tuple("abcdefgh"), "words": ("ace", "age", "bad", "bag", "bed", "cab", "egg", "fed")}
NAMES = {"letters": ("p", "q", "r"), "words": ("cap", "ear", "rap")}
UNITS = (1, 2, 5)
MIN_SIDE, MAX_SIDE = 12, 32
FAINT = 0.4  # a mark of less opacity is faint
OVERLAP = 4.5  # pixels between the centres of two marks below which one hides the other
MARKS = {12: (3, 4), 16: (3, 6), 20: (4, 7), 24: (4, 8), 32: (5, 8)}  # inclusive ranges of places, by side
MARKER = 3.0  # radius of a point


@dataclass(frozen=True)
class Look:
    """How a chart is laid out and inked, none of which says anything about its values.

    left, top : column and row (patches) where the plot begins; slot : width of a place in patches, 0 in a scatter
    chart; interval : height of a step between ticks in patches; width : of the plot in patches; axis_right and
    legend_below : on which side they stand; dx, dy : the whole drawing is moved by so many pixels; bar : share of a
    place that bars fill; grid : opacity of the grid lines; paper : grey of the background; noise : standard deviation
    of its noise.
    """

    left: int
    top: int
    slot: int
    interval: int
    width: int
    axis_right: bool
    legend_below: bool
    dx: float
    dy: float
    bar: float
    grid: float
    paper: float
    noise: float


@dataclass(frozen=True)
class Chart:
    """One chart of ``side`` x ``side`` patches.

    Attributes
    ----------
    kind : one of ``KINDS``
    labels : names of the places from left to right; empty in a scatter chart
    names, colours : of the series; the name of a single series is empty
    x : float [series, mark], from 0 (left) to 1 of the plot's width, rising
    levels : int [series, mark], in parts of a step, 1 to ``PARTS * intervals``
    opacity : float [series, mark]; below ``FAINT`` a mark is faint
    unit : value of a part
    intervals : steps between ticks
    """

    seed: int
    side: int
    kind: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    x: np.ndarray
    levels: np.ndarray
    opacity: np.ndarray
    unit: int
    intervals: int
    look: Look

    @property
    def n_marks(self) -> int:
        """Marks of each series."""
        return self.levels.shape[1]

    @property
    def step(self) -> int:
        """Value between two ticks."""
        return PARTS * self.unit

    @property
    def top(self) -> int:
        """Value of the highest tick."""
        return self.step * self.intervals

    def value(self, series: int, mark: int) -> int:
        return int(self.levels[series, mark]) * self.unit

    def is_faint(self, series: int, mark: int) -> bool:
        return bool(self.opacity[series, mark] < FAINT)

    def is_hidden(self, series: int, mark: int) -> bool:
        """Whether a mark of another series lies over or under this one (lines and points)."""
        if self.kind in ("bar", "grouped"):
            return False
        others = np.delete(self.points, series, axis=0).reshape(-1, 2)
        return bool((np.hypot(*(others - self.points[series, mark]).T) < OVERLAP).any())

    def state(self, series: int, mark: int) -> str:
        """How well a mark can be read: "faint", "hidden" or "clear"."""
        return "faint" if self.is_faint(series, mark) else "hidden" if self.is_hidden(series, mark) else "clear"

    def trend(self, series: int) -> str:
        """Say "rises", "falls" or "level": a line from its first to its last mark, a cloud by its correlation."""
        if self.kind == "scatter":
            r = _correlation(self.x[series], self.levels[series])
            return "level" if abs(r) < CLOUD_LEVEL else "rises" if r > 0 else "falls"
        change = int(self.levels[series, -1]) - int(self.levels[series, 0])
        return "rises" if change > 0 else "falls" if change < 0 else "level"

    def trend_is_close(self, series: int) -> bool:
        """Whether the trend is hard to see: ends at most one part apart, or a loose cloud."""
        if self.kind == "scatter":
            return abs(_correlation(self.x[series], self.levels[series])) < CLOUD_CLEAR
        return abs(int(self.levels[series, -1]) - int(self.levels[series, 0])) <= 1

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The plot: left, top, right, bottom. Ticks lie in the middle of a patch's height."""
        look = self.look
        left, top = look.left * PATCH + look.dx, (look.top + 0.5) * PATCH + look.dy
        return left, top, left + look.width * PATCH, top + look.interval * self.intervals * PATCH

    def y_of(self, level: float) -> float:
        return self.box[3] - level * self.look.interval * PATCH / PARTS

    @cached_property
    def points(self) -> np.ndarray:
        """Where the marks are, for bars the middle of their tops: float [series, mark, xy]."""
        left, _, right, bottom = self.box
        x = left + self.x * (right - left)
        return np.stack([x, bottom - self.levels * (self.look.interval * PATCH / PARTS)], axis=-1)

    def bar(self, series: int, mark: int) -> tuple[float, float, float, float]:
        """A bar: left, top, right, bottom."""
        x, y = self.points[series, mark]
        half = self.look.slot * PATCH * self.look.bar / len(self.names) / 2
        gap = 0.5 if len(self.names) > 1 else 0.0
        return x - half + gap, y, x + half - gap, self.box[3]

    def tick_writing(self, tick: int) -> list[tuple[str, float, float]]:
        """Digits of a tick's number, 0 to ``intervals``: (glyph, left, top) each, one patch apart."""
        text = str(tick * self.step)
        look = self.look
        column = look.left + look.width if look.axis_right else look.left - len(text)
        row = look.top + (self.intervals - tick) * look.interval
        return self._write(text, column, row)

    def label_writing(self, place: int) -> list[tuple[str, float, float]]:
        """Letters of a place's label, below the plot."""
        text, look = self.labels[place], self.look
        column = look.left + place * look.slot + (look.slot - len(text)) // 2
        return self._write(text, column, look.top + self.intervals * look.interval + 1)

    def legend_writing(self, series: int) -> list[tuple[str, float, float]]:
        """Letters of a series' name in the legend, to the right of its swatch."""
        column, row = self._legend_place(series)
        return self._write(self.names[series], column + 1, row)

    def swatch(self, series: int) -> tuple[float, float, float, float]:
        """The patch of colour in the legend: left, top, right, bottom."""
        column, row = self._legend_place(series)
        x, y = column * PATCH + self.look.dx, row * PATCH + self.look.dy
        return x + 1, y + 1, x + 7, y + 7

    def _legend_place(self, series: int) -> tuple[int, int]:
        return 1 + series * (len(self.names[0]) + 2), self.side - 1 if self.look.legend_below else 0

    def _write(self, text: str, column: int, row: int) -> list[tuple[str, float, float]]:
        y = row * PATCH + 0.5 + self.look.dy
        return [(glyph, (column + i) * PATCH + 1.5 + self.look.dx, y) for i, glyph in enumerate(text)]


CLOUD_LEVEL, CLOUD_CLEAR = 0.4, 0.75  # correlations: a level cloud has less than the first, a clear trend the second


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return 0.0 if np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


def generate(seed: int, side: int = 24, kind: str | None = None) -> Chart:
    """Draw a random chart of ``side`` x ``side`` patches.

    The highest and the lowest mark of each series are the only ones of their level. One mark in eight is faint.

    Parameters
    ----------
    seed : int
        Fixes everything.
    side : int
        Patches per side, 12 to 32.
    kind : str, optional
        One of ``KINDS``; drawn by default.

    Raises
    ------
    ValueError
        If ``side`` or ``kind`` is out of range.
    """
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"side must be {MIN_SIDE} to {MAX_SIDE} patches, got {side}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of chart {kind!r}; known: {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, side, 15])
    kind = str(rng.choice(KINDS, p=[0.3, 0.25, 0.25, 0.2])) if kind is None else kind
    most = 2 if side < 16 else 3
    series = 1 if kind == "bar" else int(rng.integers(2 if kind == "grouped" else 1, most + 1))
    intervals = int(rng.integers(3, 5 if side < 16 else 6))
    unit = int(rng.choice(UNITS))
    low, high = MARKS[max(s for s in MARKS if s <= side)]
    if kind == "scatter":
        n, narrowest = int(rng.integers(low + 1, high + 2)), 0
    else:
        narrowest = series + int(side >= 16) if kind == "grouped" else 2
        n = int(rng.integers(low, high + 1))
        n = min(n, (side - 4) // narrowest)
    look = _look(rng, side, n, narrowest, intervals, series)
    form = "words" if look.slot >= 4 and rng.random() < 0.5 else "letters"
    labels = () if kind == "scatter" else tuple(str(w) for w in rng.permutation(LABELS[form])[:n])
    roomy = series * 5 <= side - 2 and rng.random() < 0.5
    names = ("",) if series == 1 else tuple(str(w) for w in rng.permutation(NAMES["words" if roomy else "letters"]))
    colours = tuple(str(c) for c in rng.permutation(list(COLOURS))[:series])
    while True:
        x, levels = _marks(rng, kind, series, n, PARTS * intervals, look)
        ordered, clear = np.sort(levels, axis=1), np.ones(x.shape)
        alone = (ordered[:, 0] < ordered[:, 1]).all() and (ordered[:, -1] > ordered[:, -2]).all()
        chart = Chart(seed, side, kind, labels, names[:series], colours, x, levels, clear, unit, intervals, look)
        if alone and (kind != "scatter" or _is_fair_cloud(chart)):
            break
    weak = rng.random(x.shape if kind != "line" else (series, 1)) < 0.12
    opacity = np.where(weak, rng.uniform(0.18, 0.26, weak.shape), rng.uniform(0.75, 1.0, (series, 1)))
    return replace(chart, opacity=opacity * clear)


def _look(rng: np.random.Generator, side: int, n: int, narrowest: int, intervals: int, series: int) -> Look:
    """Draw where things stand: the plot takes at least 0.6 of the room that its numbers, labels and legend leave."""
    legend_below = bool(series > 1 and rng.random() < 0.5)
    first_row = 2 if series > 1 and not legend_below and side >= 16 else 1
    below = 0 if not legend_below else 1 if side < 16 else 2
    rows = side - 2 - first_row - below  # from the highest tick to the axis
    interval = _between(rng, 2, rows // intervals)
    columns = side - 4  # three digits, and a margin
    slot = _between(rng, narrowest, columns // n) if narrowest else 0
    width = slot * n if narrowest else _between(rng, 6, columns)
    axis_right = bool(rng.random() < 0.4)
    nearest = 1 if axis_right else 3
    return Look(
        left=nearest + int(rng.integers(columns - width + 1)),
        top=first_row + int(rng.integers(rows - interval * intervals + 1)),
        slot=slot,
        interval=interval,
        width=width,
        axis_right=axis_right,
        legend_below=legend_below,
        dx=round(float(rng.uniform(-1.2, 1.2)), 2),
        dy=round(float(rng.uniform(-0.4, 0.4)), 2),
        bar=round(float(rng.uniform(0.55, 0.85)), 2),
        grid=round(float(rng.choice([0.0, 0.12, 0.25])), 2),
        paper=float(rng.choice([232.0, 242.0, 252.0])),
        noise=round(float(rng.uniform(1.0, 5.0)), 2),
    )


def _between(rng: np.random.Generator, least: int, most: int) -> int:
    return int(rng.integers(max(least, round(0.6 * most)), max(least, most) + 1))


def _marks(
    rng: np.random.Generator, kind: str, series: int, n: int, top: int, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Where marks stand and how high: x and levels of a `Chart`. In three charts of ten two places are close."""
    places = (np.arange(n) + 0.5) / n
    if kind == "scatter":
        x = places + rng.uniform(-0.3, 0.3, (series, n)) / n
        slope = rng.choice([-1.0, 0.0, 1.0], size=(series, 1))
        middle, spread = rng.uniform(0.4, 0.6, (series, 1)), rng.uniform(0.05, 0.22, (series, 1))
        height = middle + slope * 0.7 * (x - 0.5) + rng.normal(0, 1, x.shape) * np.where(slope == 0, 0.22, spread)
        return x, np.clip((height * top).round(), 1, top).astype(int)
    x = np.tile(places, (series, 1))
    if kind == "grouped":
        x += (np.arange(series)[:, None] - (series - 1) / 2) * look.bar / series / n
    levels = rng.integers(1, top + 1, size=(series, n))
    if rng.random() < 0.3:
        a, b = rng.choice(n, size=2, replace=False)
        levels[:, a] = np.clip(levels[:, b] + rng.choice([-1, 1], size=series), 1, top)
    return x, levels


def _is_fair_cloud(chart: Chart) -> bool:
    """No point lies just upon another, and no correlation is between level and a trend."""
    points = chart.points.reshape(-1, 2)
    apart = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 99 * np.eye(len(points))
    r = [abs(_correlation(chart.x[s], chart.levels[s])) for s in range(len(chart.names))]
    return bool(apart.min() > MARKER) and all(value < CLOUD_LEVEL - 0.1 or value > CLOUD_LEVEL + 0.15 for value in r)
