"""Traces on disk: replaced whole or not at all, readable by others, and one clear error for a damaged one."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from made_arrays import arguments, assert_same, make

from visionpulse_analysis.traces import StoreVersionError, Trace
from visionpulse_analysis.traces import zarr_group as files


def test_existing_trace_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    make().save(tmp_path / "t")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        make(prompt_tokens=[]).save(tmp_path / "t")
    assert Trace.open(tmp_path / "t").prompt_tokens
    make(prompt_tokens=[]).save(tmp_path / "t", overwrite=True)
    assert not Trace.open(tmp_path / "t").prompt_tokens
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_folder_that_is_no_trace_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="not a visionpulse trace"):
        make().save(tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "x"


def test_a_failed_save_leaves_nothing_and_keeps_the_old_trace(tmp_path: Path, monkeypatch) -> None:
    make().save(tmp_path / "t")

    def full(group, name, array) -> None:
        if name == "steps":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_array", full)
    for path in [tmp_path / "t", tmp_path / "new"]:
        with pytest.raises(OSError, match=r"No space left.*free some space.*nothing was written") as caught:
            make(prompt_tokens=[]).save(path, overwrite=True)
        assert caught.value.errno == 28 and caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert_same(Trace.open(tmp_path / "t"), make())


def test_any_zarr_reader_can_read_it_with_few_files(tmp_path: Path) -> None:
    make().save(tmp_path / "t")
    group = zarr.open_group(tmp_path / "t", mode="r")
    arrays, attributes = (
        dict(group.arrays()),
        json.loads((tmp_path / "t" / "zarr.json").read_text())["attributes"],
    )
    np.testing.assert_array_equal(np.asarray(arrays["attention"]), arguments()["attention"])
    token_id = attributes["step_columns"].index("token_id")
    np.testing.assert_array_equal(np.asarray(arrays["steps"])[:, token_id], arguments()["token_ids"])
    assert attributes["complete"] is True
    assert sum(1 for path in (tmp_path / "t").rglob("*") if path.is_file()) <= 13


def test_reading_a_step_reads_only_its_chunk(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_CHUNK_BYTES", 2 * 14 * 2 * 2)  # two steps of attention
    make().save(tmp_path / "t")
    (tmp_path / "t" / "attention" / "2.0.0").write_bytes(b"damaged")
    trace = Trace.open(tmp_path / "t")
    np.testing.assert_array_equal(trace.at(3, 7), arguments()["attention"][3, 1])
    with pytest.raises(ValueError, match="attention is damaged"):
        trace.at(4, 7)


def test_lazy_arrays_take_every_kind_of_index(tmp_path: Path) -> None:
    make().save(tmp_path / "t")
    lazy, whole = Trace.open(tmp_path / "t").attention, make().attention
    for index in [{"step": 2}, {"step": slice(1, 4, 2), "patch": [3, 0]}, {"layer": [1], "step": -1}]:
        xr.testing.assert_identical(lazy.isel(index).load(), whole.isel(index))
    xr.testing.assert_identical(lazy.sel(layer=7, step=[4, 0]).load(), whole.sel(layer=7, step=[4, 0]))


def everything(path: Path) -> str:
    trace = Trace.open(path)
    trace.dataset.load()
    return trace.data_hash + json.dumps(trace.meta)


def test_a_file_cut_at_any_place_is_one_error_naming_it(tmp_path: Path) -> None:
    make().save(tmp_path / "good")
    names = [path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*") if path.is_file()]
    for name in names:
        size = (tmp_path / "good" / name).stat().st_size
        for cut in [0, size // 2, size - 1]:
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            (tmp_path / "bad" / name).write_bytes((tmp_path / "good" / name).read_bytes()[:cut])
            with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'bad' / name.parent))}.* damaged"):
                everything(tmp_path / "bad")
            shutil.rmtree(tmp_path / "bad")


def test_a_missing_file_is_one_error_naming_it(tmp_path: Path) -> None:
    make().save(tmp_path / "good")
    for name in [path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*")]:
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        target = tmp_path / "bad" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        where = re.escape(str(tmp_path / "bad" / name.parent))
        with pytest.raises(ValueError, match=f"{where}.* (damaged|not a visionpulse trace)"):
            everything(tmp_path / "bad")
        shutil.rmtree(tmp_path / "bad")


def test_flipped_bytes_never_give_other_numbers(tmp_path: Path) -> None:
    make().save(tmp_path / "t")
    good = everything(tmp_path / "t")
    for chunk in (tmp_path / "t").glob("*/[0-9]*"):
        original = chunk.read_bytes()
        for place in range(0, len(original), max(1, len(original) // 12)):
            flipped = bytearray(original)
            flipped[place] ^= 0x10
            chunk.write_bytes(flipped)
            try:
                assert everything(tmp_path / "t") == good, f"{chunk} byte {place}"
            except ValueError as error:
                assert f"{chunk.parent} is damaged" in str(error)
        chunk.write_bytes(original)


def edit(path: Path, **attributes) -> None:
    """Change attributes, without the checksum that would give it away: what is found must then be checked by itself."""
    found = json.loads((path / "zarr.json").read_text())
    found["attributes"] |= attributes
    for name in ("sha256", "array_sha256"):
        del found["attributes"][name]
    (path / "zarr.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    "attributes, error, message",
    [
        (
            {"format_version": 2},
            StoreVersionError,
            r"has format version 2, this package reads version 1; open it",
        ),
        ({"kind": "other"}, ValueError, "is not a visionpulse trace"),
        ({"complete": None}, ValueError, "was not written to its end"),
        ({"arrays": ["../../etc"]}, ValueError, "damaged .*is no name of an array"),
        ({"arrays": [".."]}, ValueError, "damaged .*is no name of an array"),
        ({"tokens": ["a"]}, ValueError, "damaged: attention .*axis step has 5, expected 1"),
        ({"layers": "x"}, ValueError, "damaged"),
        ({"heads": [1, 2]}, ValueError, "damaged"),
        ({"image_shapes": [[1, 1, 3]]}, ValueError, "damaged: pixels"),
        ({"frames": [[0, 0, 1, 1]]}, ValueError, "damaged"),
        ({"meta": None}, ValueError, "damaged"),
    ],
)
def test_edited_metadata_is_one_clear_error(attributes: dict, error: type, message: str, tmp_path: Path) -> None:
    make().save(tmp_path / "t")
    edit(tmp_path / "t", **attributes)
    with pytest.raises(error, match=message):
        Trace.open(tmp_path / "t")


def test_metadata_claiming_a_huge_array_does_not_hang(tmp_path: Path) -> None:
    make().save(tmp_path / "t")
    edit(tmp_path / "t")
    file = tmp_path / "t" / "pixels" / "zarr.json"
    found = json.loads(file.read_text())
    found["shape"] = [10**15]
    file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"pixels is damaged .*expected"):
        Trace.open(tmp_path / "t")


def test_nothing_there_and_something_else_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no trace at"):
        Trace.open(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not a visionpulse trace: it is a file"):
        Trace.open(tmp_path / "file")
