"""Palettes, transparency, ink, deep values and turned pictures: the pixels that a viewer shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from test_hostile_images import FORMATS, SCENE, encoded, outcome, quickly

from visionpulse_analysis.media.images import read_image

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_exif_orientation_is_applied(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(SCENE), name, exif=exif, **FORMATS[name])
    assert np.array_equal(outcome(tmp_path / "turned", content), TURNS[orientation](SCENE))


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_of_a_jpeg_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(SCENE), "JPEG", exif=exif, quality=90)
    with Image.open(io.BytesIO(content)) as stored:
        pixels = np.asarray(stored)  # as they lie in the file
    assert np.array_equal(outcome(tmp_path / "turned.jpg", content), TURNS[orientation](pixels))


def test_an_orientation_that_does_not_exist_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(outcome(tmp_path / "a.png", encoded(Image.fromarray(SCENE), "PNG", exif=exif)), SCENE)


@quickly
@given(arrays(np.uint8, (5, 7)), arrays(np.uint8, (256, 3)), st.none() | st.integers(0, 255))
def test_palettes_with_and_without_a_transparent_colour(tmp_path, indices, palette, clear):
    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    expected = palette[indices]
    if clear is not None:
        expected[indices == clear] = 255
    content = encoded(picture, "PNG", **({} if clear is None else {"transparency": clear}))
    assert np.array_equal(outcome(tmp_path / "palette.png", content), expected)


@quickly
@given(arrays(np.uint8, (4, 6, 4)))
def test_transparency_is_laid_on_white(tmp_path, pixels):
    found = outcome(tmp_path / "clear.png", encoded(Image.fromarray(pixels), "PNG"))
    assert found is not None
    share = pixels[..., 3:].astype(float) / 255
    assert np.abs(found - (pixels[..., :3] * share + 255 * (1 - share))).max() <= 1


def test_cmyk_is_ink_on_white(tmp_path):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:] = (0, 255, 255, 0)  # magenta and yellow: red
    found = outcome(tmp_path / "cmyk.tif", encoded(Image.fromarray(inks, "CMYK"), "TIFF"))
    assert found is not None and (found[:, :8] == 255).all() and (found[:, 8:] == (255, 0, 0)).all()


def test_cmyk_in_a_jpeg_is_ink_on_white(tmp_path):
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:] = (0, 255, 255, 0)
    content = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in content  # as its programs do: what is stored is how much ink is missing
    found = outcome(tmp_path / "cmyk.jpg", content)
    assert found is not None and found[:, :16].min() > 245
    assert np.abs(found[:, 16:].astype(int) - (255, 0, 0)).max() < 10


def png(values: np.ndarray, transparent: int | None = None) -> bytes:
    """A 16-bit PNG of values uint16 [row, col] (grey) or [row, col, 3], written by hand: PIL writes no such colours."""
    rows, cols = values.shape[:2]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", cols, rows, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@quickly
@given(arrays(np.uint16, (3, 5)), st.booleans())
def test_sixteen_bit_greys_are_scaled(tmp_path, values, clear):
    key = int(values[0, 0]) if clear else None
    found = outcome(tmp_path / "deep.png", png(values, key))
    expected = values / 257
    expected[values == (-1 if key is None else key)] = 255
    assert found is not None and np.abs(found - expected[..., None]).max() <= 0.5


@quickly
@given(arrays(np.uint16, (3, 5, 3)))
def test_sixteen_bit_colours_are_scaled(tmp_path, values):
    found = outcome(tmp_path / "deep.png", png(values))
    assert found is not None and np.abs(found - values / 257).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_unknown_range_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "values.tif")
    with pytest.raises(ValueError, match=r"values\.tif is not a readable image.*32-bit.*scale them to 0\.\.255"):
        read_image(tmp_path / "values.tif")
