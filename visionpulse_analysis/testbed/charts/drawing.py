"""Charts as pictures, anti-aliased: each shape covers each pixel by a share from 0 to 1."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from visionpulse_analysis.testbed.charts.chart import COLOURS, MARKER, PARTS, Chart
from visionpulse_analysis.testbed.charts.glyphs import HEIGHT, WIDTH, shifted
from visionpulse_analysis.testbed.training.packing import PATCH

INK = (32, 32, 36)
LINE, TICK = 2.2, 3.0  # pixels: the width of a line, the length of a tick


def render(chart: Chart) -> np.ndarray:
    """Draw a chart: uint8 [row_px, col_px, 3], ``side * PATCH`` pixels per side."""
    size, look = chart.side * PATCH, chart.look
    image = np.full((size, size, 3), look.paper)
    left, top, right, bottom = chart.box
    for tick in range(chart.intervals + 1):
        y = chart.y_of(PARTS * tick)
        fill_rectangle(image, (left, y - 0.5, right, y + 0.5), INK, 0.85 if tick == 0 else look.grid)
        start = right - TICK if look.axis_right else left
        fill_rectangle(image, (start, y - 0.5, start + TICK, y + 0.5), INK, 0.85)
        write(image, chart.tick_writing(tick))
    x = right if look.axis_right else left
    fill_rectangle(image, (x - 0.5, top, x + 0.5, bottom), INK, 0.85)
    for place in range(len(chart.labels)):
        write(image, chart.label_writing(place))
    for series, colour in enumerate(chart.colours):
        _draw_series(image, chart, series, COLOURS[colour])
        if chart.names[series]:
            fill_rectangle(image, chart.swatch(series), COLOURS[colour], 1.0)
            write(image, chart.legend_writing(series))
    rng = np.random.default_rng([chart.seed, chart.side, 16])
    image += look.noise * rng.standard_normal((size, size, 1))
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _draw_series(image: np.ndarray, chart: Chart, series: int, colour: tuple[int, int, int]) -> None:
    points, opacity = chart.points[series], chart.opacity[series]
    if chart.kind in ("bar", "grouped"):
        for mark in range(chart.n_marks):
            fill_rectangle(image, chart.bar(series, mark), colour, opacity[mark])
        return
    # A line and its points are one shape: a faint line must not be darker where its segments meet.
    strokes = [(p, p, 2 * MARKER) for p in points]
    if chart.kind == "line":
        strokes += [(p, q, LINE) for p, q in pairwise(points)]
        fill_strokes(image, strokes, colour, opacity[0])
    else:
        for stroke, alpha in zip(strokes, opacity, strict=True):
            fill_strokes(image, [stroke], colour, alpha)


def fill_rectangle(image: np.ndarray, box: tuple[float, float, float, float], colour, opacity: float) -> None:
    """Blend a rectangle (left, top, right, bottom; pixels) into ``image``, in place."""
    left, top, right, bottom = box
    y = np.arange(max(int(top), 0), min(int(np.ceil(bottom)), image.shape[0]))
    x = np.arange(max(int(left), 0), min(int(np.ceil(right)), image.shape[1]))
    cover_y = np.clip(np.minimum(y + 1, bottom) - np.maximum(y, top), 0, 1)
    cover_x = np.clip(np.minimum(x + 1, right) - np.maximum(x, left), 0, 1)
    if len(y) and len(x):
        _blend(image[y[0] : y[-1] + 1, x[0] : x[-1] + 1], cover_y[:, None] * cover_x, colour, opacity)


def fill_strokes(image: np.ndarray, strokes, colour, opacity: float) -> None:
    """Blend strokes with round ends, (from xy, to xy, width) each, into ``image`` as one shape, in place."""
    ends = np.array([end for stroke in strokes for end in stroke[:2]])
    reach = max(width for _, _, width in strokes) / 2 + 1
    x0, y0 = np.maximum((ends.min(axis=0) - reach).astype(int), 0)
    x1, y1 = np.minimum((ends.max(axis=0) + reach + 1).astype(int), image.shape[1::-1])
    cover = np.zeros((y1 - y0, x1 - x0))
    for start, end, width in strokes:
        left, top = np.maximum((np.minimum(start, end) - reach).astype(int) - (x0, y0), 0)
        right, bottom = (np.maximum(start, end) + reach + 1).astype(int) - (x0, y0)
        part = cover[top:bottom, left:right]
        y, x = np.ogrid[: part.shape[0], : part.shape[1]]
        dx, dy = np.subtract(end, start)
        from_x, from_y = x + 0.5 + x0 + left - start[0], y + 0.5 + y0 + top - start[1]
        along = np.clip((from_x * dx + from_y * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        distance = np.hypot(from_x - along * dx, from_y - along * dy)
        np.maximum(part, np.clip(width / 2 + 0.5 - distance, 0, 1), out=part)
    _blend(image[y0:y1, x0:x1], cover, colour, opacity)


def write(image: np.ndarray, writing: list[tuple[str, float, float]]) -> None:
    """Write glyphs, (glyph, left, top) each, into ``image``, in place."""
    for name, left, top in writing:
        x, y = int(left), int(top)
        _blend(image[y : y + HEIGHT + 1, x : x + WIDTH + 1], shifted(name, left - x, top - y), INK, 1.0)


def _blend(image: np.ndarray, cover: np.ndarray, colour, opacity: float) -> None:
    share = (cover * opacity)[: image.shape[0], : image.shape[1], None]
    image *= 1 - share
    image += share * np.asarray(colour, float)
