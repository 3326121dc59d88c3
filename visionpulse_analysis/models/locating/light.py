"""Light in parts of a picture, and how much of it reaches each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from visionpulse_analysis.models.locating.probing import Probe

DARK, BRIGHT = 60, 255
REACTS = 1e-3  # of what the most reacting token does: less is rounding
PARTLY = 0.25  # nearer than this to the middle of the way from dark to bright
BEGINS, ENDS = 0.08, 0.92  # of the way from dark to bright: where a rectangle begins and ends


def way_gone(dark: torch.Tensor, now: torch.Tensor, bright: torch.Tensor) -> np.ndarray:
    """How far tokens have gone from how they look in the dark to how they look in the light: float32 [token] in [0, 1].

    Of embeddings [token, width]; 0 where dark and bright look alike. The way gone, not its length: a tower with few or
    random weights may answer to half the light of a patch with a longer step than to all.
    """
    gone, left = (now - dark).norm(dim=1), (bright - now).norm(dim=1)
    return (gone / (gone + left).clamp(min=torch.finfo(torch.float32).tiny)).cpu().numpy()


class Light:
    """Pictures of some sizes, all dark and all bright, as a model sees them.

    Attributes
    ----------
    token : int64 [lit], positions in the prompt of the tokens that react to light
    """

    def __init__(self, probe: Probe, sizes: Sequence[tuple[int, int]]):
        self.probe, self.sizes = probe, list(sizes)
        self._dark, self._bright = (probe([np.full((*size, 3), level, np.uint8) for size in sizes])
                                    for level in (DARK, BRIGHT))  # fmt: skip
        change = (self._bright - self._dark).norm(dim=1).cpu().numpy()
        self.token = np.flatnonzero(change > REACTS * change.max()) if change.max() > 0 else np.zeros(0, np.int64)

    def reaching(self, where: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """How far each lit token has gone from how it looks in the dark to how it looks in the light: float [lit].

        ``where`` says for each picture which rows and columns are bright, bool [row_px] and bool [col_px]; light is
        where both are.
        """
        pictures = []
        for number, size in enumerate(self.sizes):
            rows, cols = where(number)
            picture = np.full((*size, 3), DARK, np.uint8)
            picture[np.ix_(rows, cols)] = BRIGHT
            pictures.append(picture)
        return way_gone(self._dark[self.token], self.probe(pictures)[self.token], self._bright[self.token])

    def along(self, axis: int, bright: Callable[[int], np.ndarray]) -> np.ndarray:
        """As `reaching`, of light that differs along one axis only, 0 across and 1 down."""

        def where(number: int) -> tuple[np.ndarray, np.ndarray]:
            height, width = self.sizes[number]
            part = bright((width, height)[axis])
            return (np.ones(height, bool), part) if axis == 0 else (part, np.ones(width, bool))

        return self.reaching(where)


def pictures_of(light: Light) -> np.ndarray:
    """Which picture each lit token shows, int64 [lit]: pictures are numbered in binary, and one digit lit at a time."""
    found, count = np.zeros(len(light.token), np.int64), len(light.sizes)
    for digit in range((count - 1).bit_length()):

        def where(number: int, digit: int = digit) -> tuple[np.ndarray, np.ndarray]:
            rows, cols = (np.full(length, bool(number >> digit & 1)) for length in light.sizes[number])
            return rows, cols

        found |= (light.reaching(where) > 0.5).astype(np.int64) << digit
    return found


def stripes(light: Light, axis: int, digits: int) -> np.ndarray:
    """The centre of each lit token as a share of the picture's width (0) or height (1), float [lit] in 0 to 1.

    Reflected binary code (Gray): the picture is cut into 2 ** digits stripes, numbered so that neighbours differ in one
    digit, and the stripes with a digit set are lit, one digit after the other. Of the digits for which a token is
    partly in the light, the coarsest tells where the light ends in it, and finer ones tell nothing.
    """
    count, code = 2**digits, np.zeros(len(light.token), np.int64)
    unclear = np.zeros(len(light.token), np.int64)  # digits from the finest to the coarsest that a token is partly in
    for digit in range(digits):

        def bright(size: int, digit: int = digit) -> np.ndarray:
            number = np.arange(size) * count // size
            return ((number ^ number >> 1) >> digit & 1).astype(bool)

        gone = light.along(axis, bright)
        code |= (gone > 0.5).astype(np.int64) << digit
        unclear[np.abs(gone - 0.5) < PARTLY] = digit + 1
    number, shift = code.copy(), 1
    while shift < digits:
        number ^= number >> shift
        shift *= 2
    return ((number >> unclear) + 0.5) * 2**unclear / count


@dataclass
class Spans:
    """Where tokens begin, have their centre and end along an axis: float [lit], as shares of the picture."""

    begin: np.ndarray
    centre: np.ndarray
    end: np.ndarray


def sweep(
    light: Light, axis: int, steps: int, picture: np.ndarray, within: tuple[float, float] = (0.0, 1.0)
) -> Spans:  # fmt: skip
    """Move the edge of a bright half-plane over the picture: a token changes while the edge crosses what it reads.

    picture : int64 [lit], which picture each token shows; within : the part of the pictures in which all tokens lie.
    """
    lengths = np.array([size[1 - axis] for size in light.sizes])
    places = np.rint(np.linspace(*within, steps + 1)[:, None] * lengths)  # of the edge in each picture, [step, picture]
    gone = np.zeros((len(places), len(light.token)))
    gone[-1] = 1
    for number, pixels in enumerate(places[1:-1], start=1):
        edge = dict(zip(lengths.tolist(), pixels.tolist(), strict=True))
        gone[number] = light.along(axis, lambda size, edge=edge: np.arange(size) < edge[size])
    gone = np.maximum.accumulate(gone, axis=0)
    edges = (places / lengths)[:, picture]  # [step, lit]
    tokens, found = np.arange(len(light.token)), []
    for level in (BEGINS, 0.5, ENDS):
        after = (gone >= level).argmax(axis=0)
        low, high = gone[after - 1, tokens], gone[after, tokens]
        start, stop = edges[after - 1, tokens], edges[after, tokens]
        found.append(start + (level - low) / (high - low) * (stop - start))
    return Spans(*found)
