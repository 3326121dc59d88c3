"""Reading pictures, also broken, huge and strange ones: the pixels that a viewer would show, or one clear error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

ImageLike = Any  # a path, a PIL image, or a uint8 array [row_px, col_px, 3]

# Not every format that PIL knows: for some (EPS) it starts another program to read the file.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# What decides the pixels of a PNG (of an animated one, too); all its other chunks are remarks.
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}

TURNS = {  # by the value of the orientation tag; 1, and anything that is no orientation, is as it is
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(image: ImageLike) -> np.ndarray:
    """Read an image as uint8 [row_px, col_px, 3], EXIF orientation applied, transparency on white.

    Raises FileNotFoundError: there is no such file; ValueError: it is no readable image (the message names it), has
    several frames, more pixels than PIL's ``Image.MAX_IMAGE_PIXELS``, or 32-bit values of unknown range.

    Parameters
    ----------
    image : str, Path, PIL image or uint8 [row_px, col_px, 3]
        A file in one of `FORMATS`. 16-bit greys are scaled to 8 bits.

    Returns
    -------
    uint8 [row_px, col_px, 3]
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"an image array must be uint8 [row_px, col_px, 3], got {image.dtype} {image.shape}")
        return image
    if isinstance(image, Image.Image):
        return pixels_of(image, "the image")
    if not isinstance(image, str | Path):
        raise ValueError(f"an image is a path, a PIL image or a uint8 array, got {type(image).__name__}")
    path = Path(image)
    if not path.is_file():
        folder = "; it is a folder: name a file in it, or give vpa.Video for a folder of frames" * path.is_dir()
        raise FileNotFoundError(f"no image at {path}{folder}" if str(image) else "no image at '': the path is empty")
    with _checked(path, str(path)) as opened:
        return pixels_of(opened, str(path))


def lies_at(path: Path, image: np.ndarray) -> bool:
    """Whether a file is there and holds this very picture."""
    try:
        return np.array_equal(read_image(path), image)
    except (OSError, ValueError):
        return False


def image_of_bytes(content: bytes, name: str) -> np.ndarray:
    """As `read_image`, of a file's content that lies elsewhere; errors call it ``name``."""
    with _checked(io.BytesIO(content), name) as opened:
        return pixels_of(opened, name)


def check_image_header(content: bytes, name: str) -> None:
    """Raise ValueError, without unpacking the picture, where `image_of_bytes` would for its kind, frames or size."""
    with _checked(io.BytesIO(content), name):
        pass


def _checked(source: Path | io.BytesIO, name: str) -> Image.Image:
    Image.init()
    try:
        opened = _opened(source)
    except Exception as error:  # readers of broken files raise nearly anything
        raise ValueError(
            f"{name} is not a readable image: {error}; formats that can be read: {', '.join(FORMATS)}"
        ) from error
    try:
        _refuse_unclear(opened, name)
    except ValueError:
        opened.close()
        raise
    return opened


def _opened(source: Path | io.BytesIO) -> Image.Image:
    """The file as PIL opens it, without its warnings about broken EXIF, which changes no pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(source, formats=FORMATS)
        except Exception:
            with suppress(OSError, struct.error):
                if plain := _without_remarks(source.read_bytes() if isinstance(source, Path) else source.getvalue()):
                    return Image.open(io.BytesIO(plain), formats=["PNG"])
            raise


def _without_remarks(content: bytes) -> bytes:
    """A PNG without the chunks that viewers pass over where they are damaged: text, times, colours, broken EXIF.

    Empty where the file is no whole PNG.
    """
    kept, place = [content[:8]], 8
    if kept[0] != b"\x89PNG\r\n\x1a\n":
        return b""
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + length + 12]
        if len(chunk) < length + 12:
            return b""
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind in PNG_PIXELS or (kind == b"eXIf" and whole):
            kept.append(chunk)
        place += len(chunk)
    return b"".join(kept)


def _refuse_unclear(picture: Image.Image, name: str) -> None:
    """Raise ValueError for a file that holds several pictures, or more pixels than it is wise to unpack."""
    refuse_huge(picture, name)
    # The second picture inside a phone's MPO file is a preview or another view; every viewer shows the first.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise ValueError(
            f"{name} holds several frames; pass vpa.Video(path) for all of them, or open it with PIL, seek() the one "
            "that you mean, and pass that image"
        )


def refuse_huge(picture: Image.Image, path: Path | str) -> None:
    """Raise ValueError for a file with more pixels than it is wise to unpack."""
    width, height = picture.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{path} has {width} x {height} pixels, above the limit of {Image.MAX_IMAGE_PIXELS:,} that guards against "
            "decompression bombs; make it smaller, or, if you trust it, open it with PIL and pass the image"
        )


def pixels_of(picture: Image.Image, name: str) -> np.ndarray:
    """The pixels of an opened picture; ValueError, which calls it ``name``, where it cannot be read."""
    if not picture.width or not picture.height:
        raise ValueError(f"{name} has {picture.width} x {picture.height} pixels; it must have at least one")
    try:
        picture.load()
        return _pixels(_upright(picture))
    except Exception as error:  # as above; also a file that ends too early, found only while unpacking
        raise ValueError(f"{name} is not a readable image: {error}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its orientation tag says, which is all that is read of its EXIF.

    Viewers show a picture whose EXIF is broken, or whose other tags are odd; where the tag itself cannot be read they
    do not turn it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # readers of broken tags raise nearly anything
        return picture
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _pixels(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return _scaled_greys(picture)
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its values are 32-bit ({picture.mode!r}) of unknown range; scale them to 0..255 and pass a uint8 array"
        )
    if picture.has_transparency_data:
        layer = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(picture.convert("RGB"))


def _scaled_greys(picture: Image.Image) -> np.ndarray:
    """16-bit greys as 8 bits, which PIL would clip rather than scale; a transparent grey becomes white."""
    values = np.asarray(picture, dtype=np.float64)
    grey = np.clip((values / 257).round(), 0, 255).astype(np.uint8)
    grey[values == picture.info.get("transparency", -1)] = 255
    return grey[..., None].repeat(3, axis=2)
