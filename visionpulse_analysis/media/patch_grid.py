"""Where the image patches are: in the token sequence, on the grid, and in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

_INDICES = {"position": np.int64, "image": np.int16, "frame": np.int16, "row": np.int16, "col": np.int16}


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Which sequence positions are image patches (a patch = a *merged* token of the language model).

    Every array is copied, converted to the stated dtype and made read-only.

    Parameters
    ----------
    position : int64 [patch]
        Index in the unpadded prompt token sequence, each used once.
    image : int16 [patch]
        Which image, 0-based; a video counts as one.
    frame : int16 [patch]
        Frame inside a video, or several frames that the model merges into one; 0 for stills.
    row, col : int16 [patch]
        Cell of the patch in the grid of its image and frame; no two patches of one frame share a cell.
    box : float32 [patch, 4]
        Left, top, right, bottom in pixels of the *original* image (right and bottom exclusive).
    image_size : int32 [n_images, 2]
        Height and width in pixels of each original image, or of each frame of a video.
    frames : int32 [n_frames, 4], optional
        One line ``image, frame, rows, cols`` per frame; left out, it is read off the largest row and column.
    pictures : int32 [n_frames, 2], optional
        Per line of `frames` the first of the original pictures that it shows, and one past the last, counted over all
        images and all frames of videos. Left out, every image is one picture, and its frames show parts of it.

    Raises
    ------
    ValueError
        An array has the wrong shape, an index is out of range, or two patches share a position or a cell.
    """

    position: np.ndarray
    image: np.ndarray
    frame: np.ndarray
    row: np.ndarray
    col: np.ndarray
    box: np.ndarray
    image_size: np.ndarray
    frames: np.ndarray | None = None
    pictures: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = np.size(self.position)
        for name, dtype in _INDICES.items():
            self._set(name, dtype, (count,), "[patch]")
            if count and getattr(self, name).min() < 0:
                raise ValueError(f"PatchGrid.{name} must not be negative, got {getattr(self, name).min()}")
        self._set("box", np.float32, (count, 4), "[patch, 4]")
        self._set("image_size", np.int32, (len(np.atleast_1d(self.image_size)), 2), "[n_images, 2]")
        if count and self.image.max() >= self.n_images:
            raise ValueError(f"PatchGrid.image is {self.image.max()}, but there are {self.n_images} image sizes")
        if len(np.unique(self.position)) != count:
            raise ValueError("PatchGrid.position must be unique: two patches share a place in the sequence")
        cells = np.stack([self.image, self.frame, self.row, self.col], axis=1)
        if len(np.unique(cells.view(np.int64))) != count:  # four int16 side by side are one number
            raise ValueError("PatchGrid: two patches share one (image, frame, row, col); give tiles their own frame")
        keys = np.unique(cells[:, :2], axis=0)
        sizes = [cells[(cells[:, :2] == key).all(axis=1), 2:].max(axis=0) + 1 for key in keys]
        extents = np.concatenate([keys, np.reshape(sizes, (-1, 2))], axis=1)  # image, frame, rows, cols
        frames = extents if self.frames is None else np.atleast_1d(self.frames)
        self._set("frames", np.int32, (len(frames), 4), "[n_frames, 4]", frames)
        for image, frame, rows, cols in extents:
            shape = self.shape(image, frame)
            if shape[0] < rows or shape[1] < cols:
                said = f"PatchGrid.frames says {shape} (rows, cols) for image {image}, frame {frame}"
                raise ValueError(f"{said}, but its patches reach {(int(rows), int(cols))}")
        pictures = np.asarray(self.frames)[:, :1] + [0, 1] if self.pictures is None else self.pictures
        self._set("pictures", np.int32, (len(frames), 2), "[n_frames, 2]", pictures)

    def _set(self, name: str, dtype: type, shape: tuple[int, ...], axes: str, value: np.ndarray | None = None) -> None:
        """Replace one field by a checked, converted, read-only copy."""
        given = np.asarray(getattr(self, name) if value is None else value)
        given = given if given.size else np.empty([0, *shape[1:]])
        if given.shape != shape:
            raise ValueError(f"PatchGrid.{name} must be {axes} of shape {shape}, got shape {given.shape}")
        array = given.astype(dtype)
        if np.issubdtype(dtype, np.integer) and not np.array_equal(array, given):
            raise ValueError(f"PatchGrid.{name} must hold whole numbers that fit {np.dtype(dtype)}")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @classmethod
    def from_grid(
        cls,
        positions: Sequence[int] | np.ndarray,
        rows: int | Sequence[int],
        cols: int | Sequence[int],
        image_sizes: Sequence[tuple[int, int]] | np.ndarray,
    ) -> PatchGrid:
        """Build one regular grid per image, covering the whole image, in reading order.

        Parameters
        ----------
        positions : int [patch], of all patches in the sequence, image after image
        rows, cols : int or int [n_images]
            Grid of each image in merged patches; one number serves all images.
        image_sizes : int [n_images, 2], height and width in pixels

        Returns
        -------
        PatchGrid

        Raises
        ------
        ValueError
            The number of positions differs from the number of grid cells (both numbers are named).

        Examples
        --------
        >>> grid = PatchGrid.from_grid(range(4, 10), rows=2, cols=3, image_sizes=[(16, 24)])
        >>> len(grid), grid.shape(), grid.patch_at(x=20, y=12)
        (6, (2, 3), 5)
        """
        sizes = np.asarray(image_sizes).reshape(-1, 2)
        shapes = np.stack([np.broadcast_to(rows, len(sizes)), np.broadcast_to(cols, len(sizes))], axis=1)
        expected = int(np.prod(shapes, axis=1).sum())
        if len(positions) != expected:
            raise ValueError(f"{len(positions)} positions, but grids {shapes.tolist()} have {expected} cells")
        image = np.repeat(np.arange(len(sizes)), np.prod(shapes, axis=1))
        row = np.concatenate([np.repeat(np.arange(r), c) for r, c in shapes])
        col = np.concatenate([np.tile(np.arange(c), r) for r, c in shapes])
        height, width = (sizes / shapes)[image].T
        box = np.stack([col * width, row * height, (col + 1) * width, (row + 1) * height], axis=1)
        return cls(np.asarray(positions), image, np.zeros_like(image), row, col, box, sizes)

    def __len__(self) -> int:
        return len(self.position)

    @property
    def n_images(self) -> int:
        """Number of original images."""
        return len(self.image_size)

    def shape(self, image: int = 0, frame: int = 0) -> tuple[int, int]:
        """Rows and columns of the grid of one frame, both given by 0-based index.

        Parameters
        ----------
        image, frame : int

        Returns
        -------
        (int, int)

        Raises
        ------
        IndexError
            There is no such image or frame.
        """
        frames = np.asarray(self.frames)
        found = frames[(frames[:, 0] == image) & (frames[:, 1] == frame)]
        if len(found) == 0:
            raise IndexError(f"no (image, frame) {(image, frame)}; the grid has {frames[:, :2].tolist()}")
        return int(found[0, 2]), int(found[0, 3])

    def to_map(self, values: np.ndarray, image: int = 0, frame: int = 0) -> np.ndarray:
        """Lay values out on the grid of one frame.

        Parameters
        ----------
        values : number or bool [..., patch]
            One value per patch of the *whole* grid (all images and frames).
        image, frame : int, 0-based

        Returns
        -------
        float32 or float64 [..., row, col]
            NaN where there is no patch. float16, float32 and bool become float32.

        Raises
        ------
        ValueError
            The last axis of `values` is not this grid's patch axis.
        IndexError
            There is no such image or frame.
        """
        values = np.asarray(values)
        if values.ndim == 0 or values.shape[-1] != len(self):
            raise ValueError(f"values must be [..., patch], {len(self)} patches on the last axis, got {values.shape}")
        here, sizes = self._in_frame(image, frame), (*values.shape[:-1], *self.shape(image, frame))
        result = np.full(sizes, np.nan, np.result_type(values.dtype, np.float32))
        result[..., self.row[here], self.col[here]] = values[..., here]
        return result

    def patch_at(self, x: float, y: float, image: int = 0, frame: int = 0) -> int | None:
        """Index of the patch that covers a point of the original image; None where there is none.

        Parameters
        ----------
        x, y : float, pixels from the left and from the top of the original image
        image, frame : int, 0-based

        Returns
        -------
        int in 0..n_patches-1, or None

        Raises
        ------
        IndexError
            There is no such image or frame.
        """
        self.shape(image, frame)
        left, top, right, bottom = self.box.T
        inside = (left <= x) & (x < right) & (top <= y) & (y < bottom) & self._in_frame(image, frame)
        return int(np.argmax(inside)) if inside.any() else None

    def take(self, patches: Sequence[int] | np.ndarray) -> PatchGrid:
        """Keep some patches, in the order given; rows, columns and the grid's shape stay as they are.

        Parameters
        ----------
        patches : int [n] indices, or bool [patch] mask

        Returns
        -------
        PatchGrid, of n patches

        Raises
        ------
        IndexError
            An index lies outside 0..n_patches-1, or a mask has another length.
        """
        chosen = np.asarray(patches)
        if chosen.dtype == bool and chosen.shape != (len(self),):
            raise IndexError(f"the mask must be [patch] of shape {(len(self),)}, got {chosen.shape}")
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"patch indices must lie in 0..{len(self) - 1}, got {chosen.min()}..{chosen.max()}")
        columns = {name: getattr(self, name)[chosen] for name in [*_INDICES, "box"]}
        return PatchGrid(**columns, image_size=self.image_size, frames=self.frames, pictures=self.pictures)

    def equals(self, other: PatchGrid) -> bool:
        """Tell whether every array of `other` is the same."""
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def _in_frame(self, image: int, frame: int) -> np.ndarray:
        return (self.image == image) & (self.frame == frame)
