"""What the image tokens of one picture are: which cell of which frame, covering which pixels, or no patch at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Region = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original picture


@dataclass(frozen=True)
class Cells:
    """The image tokens of one picture, in the order in which the model reads them.

    frame, row, col : int [token], row -1 for a token that is no patch (a line break, a class token);
    box : float [token, 4], left, top, right, bottom in pixels of the original picture.
    """

    frame: np.ndarray
    row: np.ndarray
    col: np.ndarray
    box: np.ndarray

    @classmethod
    def block(cls, rows: int, cols: int, region: Region, frame: int = 0, at: tuple[int, int] = (0, 0)) -> Cells:
        """A regular grid over ``region``, in reading order, its first cell at row and column ``at`` of the frame."""
        row, col = (axis.ravel() for axis in np.mgrid[:rows, :cols])
        left, top, right, bottom = region
        width, height = (right - left) / cols, (bottom - top) / rows
        box = np.stack([col * width, row * height, (col + 1) * width, (row + 1) * height], axis=1)
        return cls(np.full(rows * cols, frame), row + at[0], col + at[1], box + np.array([left, top, left, top]))

    @classmethod
    def breaks(cls, count: int = 1) -> Cells:
        """Image tokens that are no patches."""
        return cls(np.zeros(count, int), np.full(count, -1), np.full(count, -1), np.zeros((count, 4)))

    @classmethod
    def join(cls, *parts: Cells) -> Cells:
        """One after the other."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("frame", "row", "col", "box")))

    def with_line_breaks(self) -> Cells:
        """One token that is no patch after each row of a block."""
        ends = np.flatnonzero(np.diff(self.row, append=-1)) + 1
        gap = np.insert(np.arange(len(self)), ends, -1)
        row, col = (np.where(gap < 0, -1, column[gap]) for column in (self.row, self.col))
        return Cells(self.frame[gap], row, col, np.where(gap[:, None] < 0, 0, self.box[gap]))

    def take(self, chosen: np.ndarray) -> Cells:
        """Some of the tokens, in the order given."""
        return Cells(self.frame[chosen], self.row[chosen], self.col[chosen], self.box[chosen])

    def in_reading_order(self) -> Cells:
        """Row after row."""
        return self.take(np.lexsort([self.col, self.row]))

    def from_zero(self) -> Cells:
        """Rows and columns counted from the first that is left."""
        return Cells(self.frame, self.row - self.row.min(), self.col - self.col.min(), self.box)

    def __len__(self) -> int:
        return len(self.row)
