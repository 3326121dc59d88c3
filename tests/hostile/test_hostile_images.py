"""Broken, huge and strange pictures: the pixels that a viewer would show, or one clear error; never a wrong picture."""

import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from visionpulse_analysis.decoding.exactness.vision import changes
from visionpulse_analysis.media.images import read_image

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


def test_a_huge_picture_is_read_whole(vlm, tmp_path):
    """24 million pixels, as of a camera: shrunk by the model's own processor, the bright corner in its place."""
    pixels = np.zeros((4000, 6000, 3), np.uint8)
    pixels[:500, 5250:] = 255
    Image.fromarray(pixels).save(tmp_path / "huge.png", compress_level=1)
    dark, bright = (vlm.prompt(picture, "where ?") for picture in (np.zeros_like(pixels), tmp_path / "huge.png"))
    grid, change = bright.grid, changes(vlm, dark, bright)
    assert grid.image_size.tolist() == [[4000, 6000]] and len(grid) <= 20_000
    assert grid.box[:, 2:].max(0).tolist() == [6000, 4000]
    inside = (grid.box[:, 0] >= 5250) & (grid.box[:, 3] <= 500)
    apart = (grid.box[:, 2] < 5000) | (grid.box[:, 1] > 750)
    assert (change[grid.position[inside]] > 0).all() and (change[grid.position[apart]] == 0).all()


def test_a_text_bomb_inside_a_picture_is_never_unpacked(tmp_path):
    """The picture is read without it, as viewers do; the 128 MiB of text never come to be."""
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(b"x" * 2**27)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    content = encoded(Image.fromarray(SCENE), "PNG")
    tracemalloc.start()
    read = outcome(tmp_path / "text.png", content[:33] + chunk + content[33:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read is not None and (read == SCENE).all() and peak < 2**25


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
