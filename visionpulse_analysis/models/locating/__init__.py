"""Where each image token lies in its picture, measured instead of known: for models of any family.

Light is put into parts of the picture, and what enters the decoder is compared. Stripes in a binary code find all
centres in a logarithmic number of forward passes of the vision tower; where they form no lattice, a half-plane is swept
over the picture. Which tokens lie where depends on the processor's settings and the picture's size alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visionpulse_analysis._util.checks import UnsupportedModelError
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.locating.lattice import Frame, frames_of
from visionpulse_analysis.models.locating.light import Light, Spans, pictures_of, stripes, sweep
from visionpulse_analysis.models.locating.probing import NO_ID, Inputs, Probe

__all__ = ["Located", "NoMapError", "ids_of", "line", "measure"]

FINER = 1.5  # stripes per column of a lattice, at least
STEPS = 2.0  # positions of the half-plane per column
MIDDLE, FINEST = 0.6, 3.0  # of a picture, read at most where it is swept once more, and positions per column then
ROUGH, FINE = 0.75, 0.3  # of a step: how near the borders of lattices are known by stripes, and by the sweep
ASTRAY = 0.35  # of the way from dark to bright: less goes a token wrong through the smoothing of a resize
WIDE = 0.4  # of the picture, read by the median token: no patch, if a lattice would give it far less
IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id")
LINE = 2**15 - 1  # cells in a row of a PatchGrid


class NoMapError(UnsupportedModelError):
    """The image tokens have no places in the picture, or their places form no lattice; it was measured.

    Attributes
    ----------
    ids : int64 [id], of the tokens that react to light in the picture
    """

    def __init__(self, message: str, ids: np.ndarray | None = None):
        super().__init__(message)
        self.ids = np.zeros(0, np.int64) if ids is None else ids


@dataclass(frozen=True)
class Located:
    """Where the image tokens of a prompt lie.

    Attributes
    ----------
    grid : PatchGrid
        The tokens that react to light in the picture; its ``frame`` 0 is the finest reading (tiles), the next ones
        coarser (an overview). Positions are those in the prompt that was measured: see `on`.
    others : int64 [other]
        Positions of the other image tokens, which show nothing: line breaks, padding.
    ids : int64 [token]
        The prompt that was measured.
    way : str
        "stripes" or "sweep", by which the places were found.
    forwards : int
        How often the vision tower ran.
    share : float
        Of the picture, that the median token reads; NaN where stripes sufficed.
    """

    grid: PatchGrid
    others: np.ndarray
    ids: np.ndarray
    way: str
    forwards: int
    share: float

    def on(self, ids: np.ndarray) -> PatchGrid:
        """The same places for another prompt with pictures of the same sizes.

        Parameters
        ----------
        ids : int64 [token]
            The tokens of the other prompt, without padding, in which the same image tokens stand in the same order.

        Returns
        -------
        PatchGrid

        Raises
        ------
        ValueError
            The image tokens differ: the pictures have other sizes, or the processor had other settings.
        """
        if (self.ids == NO_ID).all():  # of another sequence, which has no words
            return self.grid
        mine = np.sort(np.concatenate([self.grid.position, self.others]))
        there = np.flatnonzero(np.isin(ids, self.ids[mine]))
        if not np.array_equal(np.asarray(ids)[there], self.ids[mine]):
            raise ValueError(
                f"the prompt has {len(there)} image tokens, the pictures given have {len(mine)} by this processor; "
                "give the pictures of this prompt, in their order, and the processor that made it, with its settings"
            )
        return replace(self.grid, position=there[np.searchsorted(mine, self.grid.position)])


def ids_of(config: Any, names: Sequence[str] = IMAGE_IDS) -> list[int]:
    """Ids of tokens that a model's configuration states under these names."""
    found = (getattr(config, name, None) for name in names)
    return [number for number in found if isinstance(number, int)]


def line(positions: np.ndarray) -> PatchGrid:
    """Image tokens whose place in the picture is not known: int64 [patch] side by side, one pixel each."""
    count = len(positions)
    number = np.arange(count)
    row, col = number // LINE, number % LINE
    box = np.stack([col, row, col + 1, row + 1], axis=1)
    none = np.zeros(count, np.int64)
    return PatchGrid(positions, none, none, row, col, box, np.array([[row.max(initial=0) + 1, min(count, LINE)]]))


def measure(model: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]) -> Located:
    """Measure where the image tokens of a prompt lie.

    Parameters
    ----------
    model
        Of transformers, in evaluation mode.
    inputs : callable
        Makes what the model is given of pictures of the ``sizes``, uint8 [row_px, col_px, 3] each, in one prompt.
    sizes : list of (int, int)
        Height and width of each in pixels.

    Raises
    ------
    NoMapError
        No image token reacts to the picture, every token reads most of it, or the places form no lattice.
    """
    name, probe = type(model).__name__, Probe(model, inputs)

    def no_map(why: str) -> NoMapError:
        return NoMapError(why, np.unique(probe.ids[light.token]))

    light = Light(probe, sizes)
    if not len(light.token):  # features are put into the states between layers
        probe.late = True
        light = Light(probe, sizes)
    if not len(light.token):  # what reads the patches needs their attention, as in towers without a way around it
        probe.silent = probe.late = False
        light = Light(probe, sizes)
    if not len(light.token):
        raise no_map(
            f"no token of {name} differs between a dark and a bright picture at the decoder's input; if its pictures "
            "come in elsewhere (cross-attention), there is no map to measure"
        )
    picture = pictures_of(light)
    counts = np.bincount(picture, minlength=len(sizes))
    if not counts.all() or len(counts) > len(sizes):
        raise no_map(f"image tokens of {name} mix {len(sizes)} pictures, which cannot be told apart: tokens by "
                     f"picture {counts.tolist()}; locate one picture at a time")  # fmt: skip
    known = list(zip(counts.tolist(), sizes, strict=True))
    across = max(_columns(count, width, height) for count, (height, width) in known)
    down = max(_columns(count, height, width) for count, (height, width) in known)
    digits = [max(1, int(np.ceil(np.log2(FINER * most)))) for most in (across, down)]
    centre = np.stack([stripes(light, axis, digits[axis]) for axis in (0, 1)], axis=1)
    way, share, resolution = "stripes", float("nan"), [2.0**-digit for digit in digits]
    found = _frames(centre, picture, sizes, resolution)
    filled = found is not None and all(frame.filled == 1 for frames in found for frame in frames)
    snap = float("inf") if found and filled and _fill(light, picture, found) else ROUGH
    if snap == ROUGH:
        steps = [int(np.ceil(STEPS * most)) for most in (across, down)]
        spans = [sweep(light, axis, steps[axis], picture) for axis in (0, 1)]
        share, resolution = _share(spans), [1 / count for count in steps]
        if share > WIDE and share * counts.min() > 4:
            raise no_map(
                f"the {len(light.token)} image tokens of {name} are no patches: the median token reads {share:.0%} of "
                "the picture (learned queries, or a tower that mixes all of it), measured with self-attention of the "
                f"tower {'silenced' if probe.silent else 'on'}; record rows and mass without a map"
            )
        parts = [(float(one.begin.min()), float(one.end.max())) for one in spans]
        if any(end - begin < MIDDLE for begin, end in parts):  # a picture cropped to its middle: once more, there
            steps = [int(np.ceil(FINEST * np.sqrt(counts.max())))] * 2
            within = [
                (max(0.0, begin - step), min(1.0, end + step))
                for (begin, end), step in zip(parts, resolution, strict=True)
            ]
            spans = [sweep(light, axis, steps[axis], picture, within[axis]) for axis in (0, 1)]
            resolution = [(end - begin) / count for (begin, end), count in zip(within, steps, strict=True)]
        swept = _frames(np.stack([one.centre for one in spans], axis=1), picture, sizes, resolution)
        if swept is not None or not filled:  # where it blurs what stripes have found, those have the word
            way, found, snap = "sweep", swept, FINE
    if found is None:
        raise no_map(
            f"the places of the {len(light.token)} image tokens of {name} form no lattice (the median token reads "
            f"{share:.1%} of the picture); record rows and mass without a map, and report the model"
        )
    grid = _grid(light.token, picture, found, sizes, snap)
    return Located(grid, _others(model, probe.ids, light.token), probe.ids, way, probe.forwards, share)


def _columns(count: int, size: int, other: int) -> float:
    """How many columns, ``size`` pixels in all, so many tokens may have: in a square lattice, or as square cells."""
    return float(np.sqrt(count) * max(1.0, np.sqrt(size / other)))


def _share(spans: Sequence[Spans]) -> float:
    across, down = (span.end - span.begin for span in spans)
    return float(np.median(across * down))


def _frames(
    centre: np.ndarray, picture: np.ndarray, sizes: Sequence[tuple[int, int]], resolution: Sequence[float]
) -> list[list[Frame]] | None:  # fmt: skip
    """The lattices of each picture, of centres [lit, 2] that are shares of it; None where some form none."""
    found = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.array([width, height])
        frames = frames_of(centre[picture == number] * pixels, (resolution[0] * width, resolution[1] * height))
        if frames is None or len(frames) > 3 or any(frame.filled < 0.5 for frame in frames):
            return None
        found.append(frames)
    return found


def _fill(light: Light, picture: np.ndarray, found: Sequence[Sequence[Frame]]) -> bool:
    """Whether the finest lattice of each picture covers it, no more and no less.

    Stripes tell the order of centres, and their places only roughly. If every second column is lit, as wide as columns
    are that cover the picture, then the tokens of these columns are bright and the others dark; so with rows.
    """
    for axis in (0, 1):

        def second(number: int, axis: int = axis) -> tuple[np.ndarray, np.ndarray]:
            size, shape = light.sizes[number], found[number][0].shape
            every = [np.ones(length, bool) for length in size]
            place = 1 - axis  # in (height, width)
            every[place] = ((np.arange(size[place]) + 0.5) * shape[place] // size[place]) % 2 == 0
            return every[0], every[1]

        gone = light.reaching(second)
        for number, frames in enumerate(found):
            node = (frames[0].row, frames[0].col)[1 - axis]
            way = gone[picture == number][frames[0].token]
            if (np.where(node % 2 == 0, 1 - way, way) > ASTRAY).any():
                return False
    return True


def _grid(
    token: np.ndarray,
    picture: np.ndarray,
    found: Sequence[Sequence[Frame]],
    sizes: Sequence[tuple[int, int]],
    snap: float,
) -> PatchGrid:
    parts = []
    for image, (frames, size) in enumerate(zip(found, sizes, strict=True)):
        here = token[picture == image]
        for number, frame in enumerate(frames):
            box = frame.boxes(size, snap)
            same = np.zeros(len(box), np.int64)
            parts.append((here[frame.token], same + image, same + number, frame.row, frame.col, box))
    position, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(position)
    return PatchGrid(position[order], *(column[order] for column in rest), image_size=np.array(sizes))


def _others(model: Any, ids: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Tokens of the picture that show nothing: those whose id says image, and those with the id of one that shows."""
    image = np.isin(ids, [*ids_of(model.config), *np.unique(ids[token])])
    return np.setdiff1d(np.flatnonzero(image), token)
