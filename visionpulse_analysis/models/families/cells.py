"""What the image tokens of one picture are: which cell of which frame, covering which pixels, or no patch at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.asking import Medium

if TYPE_CHECKING:
    from visionpulse_analysis.models.families.prompts import Shown

Region = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original picture


@dataclass(frozen=True)
class Cells:
    """The image tokens of one picture, in the order in which the model reads them.

    frame, row, col : int [token], row -1 for a token that is no patch (a line break, a class token);
    box : float [token, 4], left, top, right, bottom in pixels of the original picture;
    piece : int [token], which of the pieces that the vision tower reads one by one: tiles, an overview, frames.
    """

    frame: np.ndarray
    row: np.ndarray
    col: np.ndarray
    box: np.ndarray
    piece: np.ndarray

    @classmethod
    def block(cls, rows: int, cols: int, region: Region, frame: int = 0, at: tuple[int, int] = (0, 0)) -> Cells:
        """A regular grid over ``region``, in reading order, its first cell at row and column ``at`` of the frame."""
        row, col = (axis.ravel() for axis in np.mgrid[:rows, :cols])
        left, top, right, bottom = region
        width, height = (right - left) / cols, (bottom - top) / rows
        box = np.stack([col * width, row * height, (col + 1) * width, (row + 1) * height], axis=1)
        box = box + np.array([left, top, left, top])
        return cls(np.full(rows * cols, frame), row + at[0], col + at[1], box, np.zeros(rows * cols, int))

    @classmethod
    def blocks(cls, count: int, rows: int, cols: int, region: Region) -> Cells:
        """The same grid in each of so many frames."""
        return cls.join(*(cls.block(rows, cols, region, frame=frame) for frame in range(count)))

    @classmethod
    def breaks(cls, count: int = 1) -> Cells:
        """Image tokens that are no patches."""
        nowhere = np.full(count, -1)
        return cls(np.zeros(count, int), nowhere, nowhere, np.zeros((count, 4)), nowhere)

    @classmethod
    def join(cls, *parts: Cells) -> Cells:
        """One after the other; the pieces of each are counted on from those before it."""
        counts = [part.piece.max(initial=-1) + 1 for part in parts]
        first = np.cumsum([0, *counts[:-1]])
        piece = [np.where(part.piece < 0, -1, part.piece + at) for part, at in zip(parts, first, strict=True)]
        frame, row, col, box = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("frame", "row", "col", "box")
        )
        return cls(frame, row, col, box, np.concatenate(piece))

    def with_line_breaks(self) -> Cells:
        """One token that is no patch after each row of a block."""
        ends = np.flatnonzero(np.diff(self.row, append=-1)) + 1
        gap = np.insert(np.arange(len(self)), ends, -1)
        row, col, piece = (np.where(gap < 0, -1, column[gap]) for column in (self.row, self.col, self.piece))
        return Cells(self.frame[gap], row, col, np.where(gap[:, None] < 0, 0, self.box[gap]), piece)

    def extents(self) -> list[tuple[int, int, int]]:
        """Frame, rows and columns of every frame that has patches."""
        inside = self.row >= 0
        found = []
        for frame in np.unique(self.frame[inside]).tolist():
            here = inside & (self.frame == frame)
            found.append((frame, int(self.row[here].max()) + 1, int(self.col[here].max()) + 1))
        return found

    def take(self, chosen: np.ndarray) -> Cells:
        """Some of the tokens, in the order given."""
        columns = (self.frame, self.row, self.col, self.box, self.piece)
        return Cells(*(column[chosen] for column in columns))

    def in_reading_order(self) -> Cells:
        """Row after row."""
        return self.take(np.lexsort([self.col, self.row]))

    def from_zero(self) -> Cells:
        """Rows and columns counted from the first that is left."""
        return Cells(self.frame, self.row - self.row.min(), self.col - self.col.min(), self.box, self.piece)

    def __len__(self) -> int:
        return len(self.row)


def grid_of(positions: np.ndarray, shown: Sequence[Shown], media: Sequence[Medium]) -> PatchGrid:
    """Where the patches of one prompt are; positions int [token] are those of its image tokens.

    Raises ValueError where there are more or fewer of them than the pictures give.
    """
    cells = [one.cells for one in shown]
    whole = Cells.join(*cells)
    if len(positions) != len(whole):
        raise ValueError(f"the prompt holds {len(positions)} image tokens, but the pictures give {len(whole)}")
    first, stills = 0, []
    lines, pictures = [], []
    for image, (one, medium) in enumerate(zip(shown, media, strict=True)):
        frames = medium.frames if isinstance(medium, Clip) else [medium]
        stills.append(frames[0].shape[:2])
        for frame, rows, cols in one.cells.extents():
            lines.append([image, frame, rows, cols])
            begin = frame * one.merged if isinstance(medium, Clip) else 0
            pictures.append([first + begin, first + min(begin + one.merged, len(frames))])
        first += len(frames)
    patch = whole.row >= 0
    return PatchGrid(
        positions[patch],
        np.repeat(np.arange(len(cells)), [len(part) for part in cells])[patch],
        whole.frame[patch],
        whole.row[patch],
        whole.col[patch],
        box=whole.box[patch],
        image_size=np.array(stills),
        frames=np.array(lines),
        pictures=np.array(pictures),
    )
