"""What users give, in every family: marks typed into a question, files of cameras and printers, huge pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import visionpulse_analysis as vpa

QUESTION = "where is the red circle ?"


def test_marks_typed_by_the_user_are_refused(family, photos):
    reader, words = family.vlm.family, family.vlm.tokenizer
    marks = {token.content for token in words.added_tokens_decoder.values() if token.special}
    marks |= {reader.image_token, reader.placeholder, reader.video_placeholder} - {None}
    assert {words.eos_token, reader.image_token} <= marks
    for mark in marks:
        with pytest.raises(ValueError, match="the question contains"):
            vpa.decode(family.vlm, photos[0], f"where{mark}is it ?", max_new_tokens=1)


def test_a_photograph_is_read_upright_and_print_colours_as_seen(family, tmp_path, rng):
    pixels = rng.integers(0, 256, (40, 96, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as stored:
        upright = np.rot90(np.asarray(stored), -1)
    inks = np.zeros((40, 96, 4), np.uint8)
    inks[:, 48:] = (0, 255, 255, 0)
    Image.fromarray(inks, "CMYK").save(tmp_path / "print.tif")
    red = np.full((40, 96, 3), 255, np.uint8)
    red[:, 48:] = (255, 0, 0)
    for file, seen in (("photo.jpg", upright), ("print.tif", red)):
        given, wanted = (family.vlm.prompt(one, QUESTION) for one in (tmp_path / file, np.ascontiguousarray(seen)))
        assert torch.equal(given.ids, wanted.ids) and given.grid.equals(wanted.grid)
        assert all(torch.equal(given.inputs[name], wanted.inputs[name]) for name in wanted.inputs)
