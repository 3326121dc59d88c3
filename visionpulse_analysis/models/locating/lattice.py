"""From the measured centres of image tokens to the frames, rows, columns and rectangles of their lattices.

A picture may be read several times, as tiles and as an overview; each reading is a lattice of its own. Tokens come in
reading order within a tile, and tile after tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 0.35  # of a step of a lattice: what lies further than this from its nodes belongs to another one
WELL = 0.15  # of a step: how near to a line places are that were measured well
MIDDLE, FAR = 0.45, 0.75  # how far the middle of one of its columns or rows may be measured, and a single token


@dataclass
class Axis:
    """The nodes of a lattice along one axis: node ``i`` is at start + step * i. step : NaN for a single node."""

    start: float
    step: float

    @classmethod
    def through(cls, number: np.ndarray, centre: np.ndarray) -> Axis | None:
        """The line through the middles of the tokens of each node; None where they are not equally far apart.

        centre float [token], of which the ``number`` int64 [token] of the node is known.
        """
        nodes = np.unique(number)
        middles = np.array([np.median(centre[number == node]) for node in nodes])
        if len(nodes) == 1:
            return cls(float(middles[0]), float("nan"))
        step, start = np.polyfit(nodes, middles, 1)
        far = np.abs(start + step * nodes - middles).max()
        if len(nodes) > 4:
            # Of an outermost node that reaches beyond the picture the middle of its visible part is measured: where
            # the others lie well on a line, or all do not, it has no part in it.
            inner = np.polyfit(nodes[1:-1], middles[1:-1], 1)
            off = np.abs(np.polyval(inner, nodes) - middles)[1:-1].max()
            if off < WELL * inner[0] or far > MIDDLE * step:
                (step, start), far = inner, off
        scattered = np.abs(start + step * number - centre).max() > FAR * step
        return None if far > MIDDLE * step or scattered else cls(float(start), float(step))

    def offset(self, count: int, other: Axis, length: int) -> int | None:
        """The node of this lattice of ``count`` nodes at which another of ``length`` begins; None if it does not.

        Tiles of one size lie whole tiles apart, so that steps measured too small do not add up to a node.
        """
        if np.isnan(self.step + other.step) or abs(self.step - other.step) > self.step / 4:
            return None
        middle = (length - 1) / 2
        place = (other.start + other.step * middle - self.start) / self.step - middle
        tile = int(np.rint(place / length)) * length
        if count % length == 0 and abs(place - tile) <= length / 4:
            return tile
        return int(np.rint(place)) if abs(place - np.rint(place)) <= NEAR else None

    def edges(self, count: int, size: float, snap: float) -> np.ndarray:
        """The ``count`` + 1 borders between nodes in pixels of a picture of this size, float64 [border].

        Beyond the picture where its outermost nodes reach into padding. An outermost border that was measured nearer
        to the picture's own than ``snap`` of a step is the picture's.
        """
        if np.isnan(self.step):
            return np.array([0.0, size])
        first, last = self.start - self.step / 2, self.start + self.step * (count - 0.5)
        first = 0.0 if abs(first) < snap * self.step else first
        last = size if abs(size - last) < snap * self.step else last
        return np.linspace(first, last, count + 1)


@dataclass
class Frame:
    """One lattice: token, row, col int64 [token]; axes : across and down."""

    token: np.ndarray
    row: np.ndarray
    col: np.ndarray
    axes: tuple[Axis, Axis]

    @classmethod
    def of(cls, token: np.ndarray, row: np.ndarray, col: np.ndarray, centre: np.ndarray) -> Frame | None:
        """The lattice of some tokens of which the nodes are known; None where a centre is far from its node."""
        row, col = row - row.min(), col - col.min()
        across, down = Axis.through(col, centre[token, 0]), Axis.through(row, centre[token, 1])
        return None if across is None or down is None else cls(token, row, col, (across, down))

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.row.max()) + 1, int(self.col.max()) + 1

    @property
    def filled(self) -> float:
        """How much of the lattice has tokens."""
        return len(self.token) / (self.shape[0] * self.shape[1])

    def covers(self, other: Frame, centre: np.ndarray) -> bool:
        """Whether the other shows a part of the picture that this one shows, too."""
        mine, their = centre[self.token], centre[other.token]

        def within(point: np.ndarray, places: np.ndarray) -> bool:
            return bool(((places.min(axis=0) <= point) & (point <= places.max(axis=0))).all())

        return within(np.median(mine, axis=0), their) or within(np.median(their, axis=0), mine)

    def joined(self, other: Frame, centre: np.ndarray) -> Frame | None:
        """Both as one lattice; None where they are none: the other has other steps, or lies on nodes taken."""
        rows, cols = other.shape
        right = self.axes[0].offset(self.shape[1], other.axes[0], cols)
        below = self.axes[1].offset(self.shape[0], other.axes[1], rows)
        if right is None or below is None:
            return None
        row, col = other.row + below, other.col + right
        cells = np.concatenate([self.row, row]), np.concatenate([self.col, col])
        token = np.concatenate([self.token, other.token])
        if len(set(zip(*(part.tolist() for part in cells), strict=True))) < len(token):
            return None
        return Frame.of(token, *cells, centre)

    def boxes(self, size: tuple[int, int], snap: float) -> np.ndarray:
        """Left, top, right, bottom of each token in a picture of (height, width) pixels: float64 [token, 4].

        snap : as in `Axis.edges`; infinite where the lattice is known to cover the picture, no more and no less.
        """
        across = self.axes[0].edges(self.shape[1], size[1], snap)
        down = self.axes[1].edges(self.shape[0], size[0], snap)
        return np.stack([across[self.col], down[self.row], across[self.col + 1], down[self.row + 1]], axis=1)


def frames_of(centre: np.ndarray, resolution: tuple[float, float]) -> list[Frame] | None:
    """The lattices of the tokens of one picture, the finest first; None where they form none.

    Parameters
    ----------
    centre : float [token, 2]
        Measured, across and down, in pixels; in the order of the sequence.
    resolution : (float, float)
        How near to each other two centres may be measured though they differ, across and down, in pixels.
    """
    frames: list[Frame] = []
    for first, rows, cols in _blocks(centre, resolution):
        token = np.arange(first, first + rows * cols)
        block = Frame.of(token, np.repeat(np.arange(rows), cols), np.tile(np.arange(cols), rows), centre)
        if block is None:
            return None
        seen = [frame for frame in frames if frame.covers(block, centre)]
        for number, frame in enumerate(frames):
            joined = frame.joined(block, centre)
            if joined is not None:
                frames[number] = joined
                break
        else:
            if frames and not seen:  # beside the others and on no lattice of theirs: something was measured wrong
                return None
            frames.append(block)
    return sorted(frames, key=lambda frame: float(np.nan_to_num(frame.axes[0].step * frame.axes[1].step, nan=np.inf)))


def _blocks(centre: np.ndarray, resolution: tuple[float, float]) -> list[tuple[int, int, int]]:
    """Where tokens run line by line: the first token, rows and columns of each such stretch of the sequence."""
    (x, y), (across, down), count = centre.T, (resolution[0] / 2, resolution[1] / 2), len(centre)
    right = np.append(np.diff(x) > across, False)  # whether the next token is further right

    def line(first: int) -> int:
        """How many tokens the line has that begins here."""
        end = first
        while right[end] and abs(y[end + 1] - y[first]) <= down * max(2.0, (x[end + 1] - x[end]) / (2 * across)):
            end += 1
        return end + 1 - first

    blocks, first = [], 0
    while first < count:
        cols, rows = line(first), 1
        step = np.median(np.diff(x[first : first + cols])) if cols > 1 else 2 * across
        while True:
            new = first + rows * cols
            if new >= count or line(new) != cols or abs(x[new] - x[first]) > NEAR * step + across:
                break
            if np.median(y[new : new + cols]) - np.median(y[new - cols : new]) <= down:
                break
            rows += 1
        blocks.append((first, rows, cols))
        first += rows * cols
    return blocks
