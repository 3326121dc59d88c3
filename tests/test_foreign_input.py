"""What other programs leave in pictures and folders, and text that comes from NumPy."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import visionpulse_analysis as vpa
from visionpulse_analysis.experiments.samples import image_files, image_samples
from visionpulse_analysis.media.images import read_image

APPLE = b"\0\5\x16\7" + b"\0" * 4000
LEFT = {"._f0.png": APPLE, ".DS_Store": b"\0\0\0\1Bud1", "Thumbs.db": b"\xd0\xcf\x11\xe0", "desktop.ini": b"[x]"}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8))


def saved(path: Path, exif: bytes) -> Path:
    picture().save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\10"]
)
def test_a_picture_with_broken_exif_is_as_it_is(tmp_path, kind, exif):
    path = saved(tmp_path / f"e.{kind}", exif)
    assert np.array_equal(read_image(path), np.asarray(picture()))


def oriented(value: int, odd: bytes) -> bytes:
    """EXIF of an orientation and one odd tag."""
    return b"".join(
        [b"Exif\0\0II*\0\x08\0\0\0\2\0", struct.pack("<HHII", ExifTags.Base.Orientation, 3, 1, value), odd, b"\0" * 4]
    )


ODD = struct.pack("<HHII", ExifTags.Base.Make, 2, 200, 2**31)  # a text behind the end


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize(
    "odd",
    [
        struct.pack("<HHII", ExifTags.Base.XResolution, 2, 4, 2**32 - 1),  # text for a ratio
        struct.pack("<HHII", ExifTags.Base.Make, 11, 1, 2**32 - 1),  # NaN for text
        struct.pack("<HHII", ExifTags.Base.ExifOffset, 9, 1, 2**32 - 1),  # a place before the beginning
        struct.pack("<HHII", 0x9286, 99, 10**9, 10**9),  # of no known kind, behind the end
    ],
)
def test_odd_tags_beside_an_orientation_change_nothing(tmp_path, kind, odd):
    plain = np.asarray(picture())
    turned = {
        0: plain, 1: plain, 9: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1],
        5: plain.transpose(1, 0, 2), 6: np.rot90(plain, -1), 7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(plain),
    }  # fmt: skip
    for value, expected in turned.items():
        assert np.array_equal(read_image(saved(tmp_path / f"e.{kind}", oriented(value, odd))), expected), value


def test_an_open_picture_with_broken_exif(tmp_path):
    memory = BytesIO()
    picture().save(memory, "PNG", exif=b"Exif\0\0garbage!")
    assert np.array_equal(read_image(Image.open(memory)), np.asarray(picture()))


def test_broken_exif_of_a_jpeg_is_no_warning(tmp_path):
    picture().save(tmp_path / "plain.jpg")
    for number, exif in enumerate(
        [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", oriented(1, ODD)]
    ):
        path = saved(tmp_path / f"{number}.jpg", exif)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(read_image(path), read_image(tmp_path / "plain.jpg"))


@pytest.mark.parametrize("kind", ["eXIf", "tEXt", "zTXt", "iCCP", "tIME", "gAMA"])
def test_remarks_with_a_wrong_checksum_are_passed_over(tmp_path, kind):
    """As libpng does; a damaged part of the pixels stays an error, and so does a file cut off."""
    plain, path = tmp_path / "plain.png", tmp_path / "odd.png"
    picture().save(plain)
    content = plain.read_bytes()
    end = 8 + 25  # behind the header
    remark = struct.pack(">I", 9) + kind.encode() + b"a\0bcdefgh"
    path.write_bytes(content[:end] + remark + b"\0\0\0\0" + content[end:])
    assert np.array_equal(read_image(path), np.asarray(picture()))
    for broken in (path.read_bytes()[:-30], path.read_bytes().replace(b"IDAT", b"IDAX")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="not a readable image"):
            read_image(path)


def test_folders_of_pictures_leave_out_what_systems_leave(tmp_path):
    for number in range(3):
        picture().save(tmp_path / f"f{number}.png")
    for name, content in {**LEFT, "f9.png~": b"x", ".hidden.png": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    names = [f"f{number}.png" for number in range(3)]
    assert [path.name for path in image_files(tmp_path)] == names
    assert [sample.image.name for sample in image_samples(tmp_path, "what ?")] == names
    assert len(vpa.Video(tmp_path, fps=2).read().frames) == 3


def test_a_folder_of_nothing_else_holds_no_image(tmp_path):
    (tmp_path / "._f0.png").write_bytes(APPLE)
    with pytest.raises(FileNotFoundError, match="no image"):
        image_files(tmp_path)


def test_a_store_is_read_with_what_systems_leave_in_it(tmp_path):
    from made_arrays import arguments

    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".DS_Store").write_bytes(b"x")
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    trace = vpa.create_trace(**{**arguments(), "meta": {"id": "a", "complete": True}})
    store.add(trace)
    folders = [path for path in (tmp_path / "store").rglob("*") if path.is_dir()]
    for folder in [tmp_path / "store", *folders]:
        for name, content in {**LEFT, "._0.0": APPLE, "._zarr.json": APPLE, "._.b.journal": APPLE}.items():
            (folder / name).write_bytes(content)
    (tmp_path / "store" / "__MACOSX").mkdir()
    assert store.ids == ["a"] and "__MACOSX" not in store
    assert store["a"].data_hash == trace.data_hash
    chunk = next(path for path in (tmp_path / "store" / "a" / "attention").iterdir() if path.name[0].isdigit())
    chunk.unlink()
    with pytest.raises(ValueError, match=r"attention is damaged .it has 0 chunk files, expected 1"):
        _ = store["a"].attention.values


def test_numpy_text_is_text(vlm, tmp_path):
    picture().resize((64, 64)).save(tmp_path / "p.png")
    path, question = str(tmp_path / "p.png"), "where is it ?"
    options = {"layers": "anchor", "max_new_tokens": 2}
    [plain, _] = vpa.decode(vlm, [path, path], [question] * 2, **options)
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    for kind in (np.str_, object):
        ids = np.array([f"{kind.__name__}-1", f"{kind.__name__}-2"], dtype=kind)
        asked = np.array([question] * 2, dtype=kind)
        for images in ([path, path], np.array([path, path], dtype=kind)):
            traces = vpa.decode(vlm, images, asked, ids=ids, store=store, overwrite=True, **options)
            assert [trace.data_hash for trace in traces] == [plain.data_hash] * 2
            assert [type(trace.meta[name]) for trace in traces for name in ("id", "question")] == [str] * 4
    one = vpa.decode(vlm, np.str_(path), np.array(question), ids=np.str_("one"), store=store, **options)
    assert one.tokens == plain.tokens and store[np.str_("one")].meta["id"] == "one"
    several = vpa.decode(vlm, np.array([path, path]), np.str_(question), **options)
    assert len(several.images) == 2


def test_numpy_text_in_a_trace(tmp_path):
    from made_arrays import arguments

    given = arguments()
    tokens = np.array(given["tokens"])
    trace = vpa.create_trace(**{**given, "tokens": tokens, "meta": {"question": np.str_("a"), "list": tokens}})
    assert trace.tokens == tokens.tolist() and trace.meta["list"] == tokens.tolist()
