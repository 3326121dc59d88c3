"""Bytes the page can read: lossless numbers, small pictures."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

LARGEST_PICTURE = 1024  # pixels on the longer side
PICTURE_BYTES = 400_000  # for all pictures of a page together


def plane(values: np.ndarray) -> str:
    """Compress float16 without loss: high bytes first, then low bytes, zlib, base64.

    Sign and exponent sit in the high byte and repeat a lot; away from the noisy low bytes they compress.
    """
    half = np.ascontiguousarray(values, dtype="<f2")
    split = half.view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(split.tobytes(), 9)).decode()


def bits(flags: np.ndarray) -> str:
    """Pack booleans eight to a byte (first flag = highest bit), zlib, base64."""
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode()


def floats(values: np.ndarray) -> str:
    """Little-endian float32, zlib, base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype="<f4").tobytes(), 9)).decode()


def pictures(images: Sequence[np.ndarray]) -> tuple[list[str], str | None]:
    """Encode images as data URLs that together stay near `PICTURE_BYTES`.

    Small images stay PNG, pixel for pixel. Larger ones become JPEG and are reduced until all fit.

    Parameters
    ----------
    images : sequence of uint8 [row_px, col_px, 3]

    Returns
    -------
    urls : list of str
    note : str or None
        What was reduced, in words; None when every image is exact.
    """
    allowance = PICTURE_BYTES // max(1, len(images))
    encoded = [_picture(np.asarray(image), allowance) for image in images]
    sides = [side for _, side in encoded if side is not None]
    note = (
        f"Pictures are shown as JPEG, at most {min(sides)} px wide or high; attention is not affected."
        if sides
        else None
    )
    return [url for url, _ in encoded], note


def _picture(image: np.ndarray, allowance: int) -> tuple[str, int | None]:
    original = Image.fromarray(image)
    if max(original.size) <= LARGEST_PICTURE:
        exact = _encoded(original, "PNG")
        if len(exact) <= allowance:
            return f"data:image/png;base64,{exact}", None
    side = LARGEST_PICTURE
    while True:
        smaller = original.copy()
        smaller.thumbnail((side, side))
        encoded = _encoded(smaller, "JPEG")
        if len(encoded) <= allowance or side <= 96:
            return f"data:image/jpeg;base64,{encoded}", side
        side = side * 3 // 4


def _encoded(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return base64.b64encode(buffer.getvalue()).decode()
