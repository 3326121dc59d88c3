"""Broken, huge and strange pictures: the pixels that a viewer would show, or one clear error; never a wrong picture."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import EpsImagePlugin, Image

from visionpulse_analysis.images import read_image

quickly = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMATS = {
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
    "JPEG": {"quality": 90},
    "JPEG progressive": {"progressive": True},
}
SCENE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encoded(picture: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name.split()[0], **options)
    return buffer.getvalue()


def outcome(path: Path, content: bytes) -> np.ndarray | None:
    """The pixels, or None after the one error there may be, which names the file."""
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks about broken EXIF
            found = read_image(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} ")
        return None
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_at_any_byte_is_the_whole_picture_or_an_error(tmp_path, name):
    content = encoded(Image.fromarray(SCENE), name, **FORMATS[name])
    whole = outcome(tmp_path / "whole", content)
    assert whole is not None and whole.shape == SCENE.shape
    cuts = {*range(0, len(content), 37), *range(len(content) - 25, len(content))}
    found = [outcome(tmp_path / "cut", content[:cut]) for cut in cuts]
    assert any(pixels is None for pixels in found)
    for pixels in found:
        assert pixels is None or np.array_equal(pixels, whole)


@quickly
@given(data=st.data())
def test_changed_bytes_never_give_anything_but_a_picture_or_an_error(tmp_path, data):
    name = data.draw(st.sampled_from(list(FORMATS)))
    content = bytearray(encoded(Image.fromarray(SCENE), name, **FORMATS[name]))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    outcome(tmp_path / "changed", bytes(content))


@quickly
@given(place=st.integers(8, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_png_is_never_another_picture(tmp_path, place, bit):
    content = bytearray(encoded(Image.fromarray(SCENE), "PNG"))
    content[place % len(content)] ^= 1 << bit
    pixels = outcome(tmp_path / "flipped", bytes(content))
    assert pixels is None or np.array_equal(pixels, SCENE)


@given(st.binary(max_size=200))
@quickly
def test_noise_behind_a_valid_beginning_is_an_error(tmp_path, noise):
    for start in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\xff\xd8\xff\xe0",
        b"BM",
        b"II*\0",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"P6 ",
    ):
        outcome(tmp_path / "noise", start + noise)


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


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused_and_a_chosen_one_is_read(tmp_path, name):
    path = tmp_path / "moving"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(path, name, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ValueError, match=r"moving holds several frames.*seek"):
        read_image(path)
    with Image.open(path) as opened:
        opened.seek(1)
        assert (read_image(opened)[4, 4] == (0, 255, 0)).all()


def test_the_main_picture_of_a_phone_photograph_is_read(tmp_path):
    path = tmp_path / "photo.jpg"
    main, preview = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")
    main.save(path, "MPO", save_all=True, append_images=[preview])
    found = read_image(path)
    assert found.shape == (16, 16, 3) and found[..., 0].min() > 200 and found[..., 2].max() < 50


def test_decompression_bombs_are_refused_before_they_are_unpacked(tmp_path):
    for side in (10_000, 100_000):  # PIL itself warns at the first size and refuses the second
        bomb = bytearray(encoded(Image.fromarray(SCENE), "PNG"))
        bomb[16:24] = struct.pack(">II", side, side)
        bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
        (tmp_path / "bomb.png").write_bytes(bomb)
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"bomb\.png .*decompression bomb"):
            warnings.simplefilter("ignore")
            read_image(tmp_path / "bomb.png")


def test_a_text_bomb_inside_a_picture_is_refused(tmp_path):
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(b"x" * 2**27)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    content = encoded(Image.fromarray(SCENE), "PNG")
    assert outcome(tmp_path / "text.png", content[:33] + chunk + content[33:]) is None


def test_formats_that_start_other_programs_are_refused(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1) or Image.new("RGB", (8, 8)))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    assert outcome(tmp_path / "figure.eps", content) is None and started == []


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path, tmp_path / "pipe", "", "no\0where", "https://example.org/a.png", "/dev/zero"):
        with pytest.raises(FileNotFoundError, match="no image at"):
            read_image(path)
    for thing in (
        None,
        3,
        b"bytes",
        [1, 2],
        np.zeros((4, 4)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"an image (array must be|is a path)"):
            read_image(thing)
