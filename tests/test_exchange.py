"""Traces for other programs and back: nothing is lost on the way, and what cannot be said is refused."""

import csv
import hashlib
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.exchange import patch_boxes, read_npz, step_table, write_boxes, write_npz, write_table
from visionpulse_analysis.measures import PAPER_THRESHOLDS, active_count, attention_mass, entropy_bits
from visionpulse_analysis.patches import PatchGrid
from visionpulse_analysis.store import StoreVersionError, TraceStore
from visionpulse_analysis.traces import Trace, create_trace

PICTURE = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def authors_fields(steps: int = 6, all_layers: bool = True, **metadata) -> dict[str, np.ndarray]:
    """What the authors' collector saves: float32 rows that float16 cannot hold."""
    random = np.random.default_rng(steps)
    layers = np.arange(5) if all_layers else np.array([2])
    about = {"format_version": 1, "sample_id": "vent", "question": "where ?", "model": "m", "layer": 2, "seed": 42}
    about |= {"layers": layers.tolist(), "generation": {"max_new_tokens": 256, "do_sample": False}, "nan": float("nan")}
    fields = {
        "visual_scores": random.dirichlet(np.ones(13), steps)[:, :12].astype(np.float32),
        "token_ids": random.integers(0, 150_000, steps),
        "token_texts": np.asarray([f" tö{t}" for t in range(steps)]),
        "grid_hw": np.array([3, 4]),
        "layer_indices": layers,
        "metadata": np.asarray(json.dumps({**about, "stopped_on_eos": True, **metadata})),
    }
    if all_layers:
        fields["similarity_by_step"] = random.random((steps, 5, 5)).astype(np.float32)
    return fields


def save(folder: Path, fields: dict[str, Any], picture: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "trace.npz", **fields)
    if picture:
        Image.fromarray(PICTURE).save(folder / "image.png")
    return folder / "trace.npz"


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


def own(heads: bool = False, pruned: bool = True, tokens: list[str] | None = None, images: int = 1) -> Trace:
    """A trace of this package, with everything a trace may have."""
    random = np.random.default_rng(3)
    texts = ["<think> ", "=1+1", 'a "b", c\n', "\r", "NA"] if tokens is None else tokens
    shape = (len(texts), 2, 3) if heads else (len(texts), 2)
    attention = random.dirichlet(np.ones(13 * images), shape)[..., : 12 * images].astype(np.float16)
    steps = len(texts)
    chosen = {"kept": random.random((steps, 12 * images)) < 0.4, "pruner_mass": random.random(steps)}
    chosen |= {"budget": [np.nan, *[0.1] * (steps - 1)], "k": [-1, *[5] * (steps - 1)]}
    return create_trace(
        **{"attention": attention, "mass": attention.astype(np.float32).sum(-1), "layers": [2, 7]},
        **{"tokens": texts, "token_ids": random.integers(0, 999, steps), "logprobs": -random.random(steps)},
        **(chosen if pruned else {}),
        heads=[0, 2, 5] if heads else None,
        grid=PatchGrid.from_grid(range(5, 5 + 12 * images), 3, 4, [(30, 40)] * images),
        images=[PICTURE] * images,
        prompt_tokens=["<|im_start|>", "where"],
        meta={"id": "own", "question": "wo ist </script> ?", "seed": 3, "pruner": {"name": "visionpulse"}},
    )


def assert_same(found: Trace, wanted: Trace) -> None:
    xr.testing.assert_identical(found.dataset.load(), wanted.dataset.load())
    assert found.data_hash == wanted.data_hash and found.meta == wanted.meta


class TestAuthorsFiles:
    @pytest.mark.parametrize("picture", [True, False])
    @pytest.mark.parametrize("all_layers", [True, False])
    def test_there_and_back_through_a_store_loses_nothing(self, tmp_path, all_layers, picture):
        fields = authors_fields(all_layers=all_layers)
        assert not np.array_equal(fields["visual_scores"], fields["visual_scores"].astype(np.float16))
        store = TraceStore(tmp_path / "store", mode="a")
        store.add(read_npz(save(tmp_path / "in", fields, picture)))
        written = write_npz(store["vent"], tmp_path / "out" / "trace.npz")
        assert_equal(load(written[0]), fields)
        assert len(written) == 1 + picture
        if picture:
            with Image.open(written[1]) as image:
                assert np.array_equal(np.asarray(image), PICTURE)

    def test_the_trace_says_what_the_file_says(self, tmp_path):
        fields = authors_fields()
        trace = read_npz(save(tmp_path, fields))
        assert trace.attention.dtype == np.float32 and trace.layers == [2] and trace.heads is None
        assert np.array_equal(trace.attention[:, 0], fields["visual_scores"])
        assert trace.tokens == fields["token_texts"].tolist() and trace.grid.shape() == (3, 4)
        assert np.array_equal(trace.token_ids, fields["token_ids"]) and np.isnan(trace.logprobs).all()
        assert np.array_equal(trace.dataset["similarity"], fields["similarity_by_step"])
        assert trace.dataset["similarity_layer"].values.tolist() == [0, 1, 2, 3, 4]
        assert trace.grid.box[5].tolist() == [10, 10, 20, 20]  # pixels of the picture
        said = {"id": "vent", "question": "where ?", "model": "m", "seed": 42, "finished": True, "max_new_tokens": 256}
        assert {name: trace.meta[name] for name in said} == said
        assert trace.meta["trace_npz"]["sha256"] == hashlib.sha256((tmp_path / "trace.npz").read_bytes()).hexdigest()

    def test_measures_are_those_of_the_float32_rows(self, tmp_path):
        fields = authors_fields(40)
        trace = read_npz(save(tmp_path, fields))
        rows = trace.attention.values[:, 0]
        wanted = (fields["visual_scores"].astype(np.float64)[..., None] > PAPER_THRESHOLDS).sum(1)
        assert np.array_equal(active_count(rows, PAPER_THRESHOLDS), wanted)
        assert np.allclose(attention_mass(rows), trace.mass.values[:, 0], rtol=1e-6)

    def test_without_a_picture_boxes_count_patches(self, tmp_path):
        grid = read_npz(save(tmp_path, authors_fields(), picture=False)).grid
        assert grid.image_size.tolist() == [[3, 4]] and grid.box[5].tolist() == [1, 1, 2, 2]

    def test_a_picture_and_an_id_may_be_given(self, tmp_path):
        trace = read_npz(save(tmp_path, authors_fields(sample_id="a/b"), picture=False), image=PICTURE, id="a-b")
        assert trace.meta["id"] == "a-b" and np.array_equal(trace.images[0], PICTURE)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"grid_hw": None}, ValueError, r"missing \['grid_hw'\]"),
            ({"extra": np.zeros(2)}, ValueError, r"unknown \['extra'\]"),
            ({"grid_hw": np.array([4, 4])}, ValueError, "grid_hw is 4 x 4, but there are 12 patches"),
            ({"grid_hw": np.array([-3, -4])}, ValueError, "grid_hw is -3 x -4"),
            ({"visual_scores": np.zeros((5, 12), np.float32)}, ValueError, "token_ids has shape"),
            ({"visual_scores": np.full((6, 12), np.nan, np.float32)}, ValueError, "not finite"),
            ({"visual_scores": np.full((6, 12), -0.1, np.float32)}, ValueError, "negative"),
            ({"visual_scores": np.full((6, 12), 0.5, np.float32)}, ValueError, "sums to 6"),
            ({"visual_scores": np.full((6, 12), 0.01)}, ValueError, "float64 and does not fit float32"),
            ({"token_texts": np.zeros(6)}, ValueError, "token_texts has shape"),
            ({"layer_indices": np.array([7, 8, 9, 10, 11])}, ValueError, "its layer is 2, but layer_indices is"),
            ({"similarity_by_step": np.zeros((6, 4, 4), np.float32)}, ValueError, "similarity_by_step has shape"),
            ({"metadata": np.asarray("{")}, ValueError, "metadata is no JSON"),
            ({"metadata": np.asarray("[1]")}, StoreVersionError, "format version None"),
            ({"metadata": np.asarray('{"format_version": 2}')}, StoreVersionError, "version 2, .* version 1"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_named(self, tmp_path, change, error, message):
        fields = {name: array for name, array in {**authors_fields(), **change}.items() if array is not None}
        with pytest.raises(error, match=rf"trace\.npz.*{message}"):
            read_npz(save(tmp_path, fields))


class TestOwnTraces:
    @pytest.mark.parametrize("heads", [False, True])
    @pytest.mark.parametrize("pruned", [False, True])
    def test_the_same_trace_comes_back(self, tmp_path, heads, pruned):
        trace = own(heads, pruned)
        write_npz(trace, tmp_path / "trace.npz", layer=7)
        assert_same(read_npz(tmp_path / "trace.npz"), trace)

    def test_the_authors_fields_say_the_same(self, tmp_path):
        trace = own(heads=True)
        write_npz(trace, tmp_path / "trace.npz", layer=7, whole=False)
        fields = load(tmp_path / "trace.npz")
        mean = trace.attention.values[:, 1].astype(np.float32).mean(1)
        assert fields["visual_scores"].dtype == np.float32 and np.array_equal(fields["visual_scores"], mean)
        assert fields["token_texts"].tolist() == trace.tokens and np.array_equal(fields["token_ids"], trace.token_ids)
        about = json.loads(fields["metadata"].item())
        assert (about["format_version"], about["layer"], about["sample_id"]) == (1, 7, "own")
        a, b = (trace.attention.values[:, i].astype(float).mean(1) for i in (0, 1))
        cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        assert np.allclose(fields["similarity_by_step"][:, 0, 1], cosine, rtol=1e-6)
        again = read_npz(tmp_path / "trace.npz")  # now another program's file: one layer, and no more
        assert again.layers == [7] and np.array_equal(again.attention[:, 0], mean) and again.kept is None

    def test_a_change_by_another_program_is_noticed(self, tmp_path):
        write_npz(own(), tmp_path / "trace.npz", layer=2)
        fields = load(tmp_path / "trace.npz")
        fields["visual_scores"][0, 0] += 0.01
        np.savez(tmp_path / "trace.npz", **fields)
        with pytest.raises(ValueError, match=r"was changed since it was written: \['visual_scores'\]"):
            read_npz(tmp_path / "trace.npz")

    def test_what_the_format_cannot_say_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="one still image; this trace has 5 steps, 2 images"):
            write_npz(own(images=2), tmp_path / "t.npz", layer=2)
        with pytest.raises(IndexError, match=r"recorded layers: \[2, 7\]"):
            write_npz(own(), tmp_path / "t.npz")
        with pytest.raises(ValueError, match="0 steps"):
            write_npz(own(tokens=[], pruned=False), tmp_path / "t.npz", layer=2)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_replaced_unasked_and_nothing_half_written(self, tmp_path, monkeypatch):
        (tmp_path / "image.png").write_bytes(b"mine")
        with pytest.raises(FileExistsError, match=r"image\.png exists"):
            write_npz(own(), tmp_path / "trace.npz", layer=2)
        write_npz(own(), tmp_path / "trace.npz", layer=2, overwrite=True)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert set(before) == {"trace.npz", "image.png"}

        def full(file, **arrays):
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match=r"No space left.*free some space.*nothing was written"):
            write_npz(own(), tmp_path / "trace.npz", layer=2, overwrite=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-marker"),))


class TestHostileFiles:
    def test_pickles_are_not_opened(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fields = authors_fields() | {"metadata": np.array(Evil(), dtype=object)}
        np.savez(tmp_path / "trace.npz", **fields)
        with pytest.raises(ValueError, match=r"trace\.npz is not a readable trace\.npz: Object arrays"):
            read_npz(tmp_path / "trace.npz")
        (tmp_path / "trace.npz").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError, match="is not a readable"):
            read_npz(tmp_path / "trace.npz")
        assert not Path("evil-marker").exists()

    def test_names_inside_an_archive_lead_nowhere(self, tmp_path):
        (tmp_path / "in").mkdir()
        with zipfile.ZipFile(tmp_path / "in" / "trace.npz", "w") as archive:
            for name in ("../escaped.npy", "/escaped.npy", "visionpulse.../../escaped.npy"):
                buffer = io.BytesIO()
                np.save(buffer, np.zeros(3))
                archive.writestr(name, buffer.getvalue())
        with pytest.raises(ValueError, match="is not a trace"):
            read_npz(tmp_path / "in" / "trace.npz")
        assert [path.name for path in tmp_path.rglob("*")] == ["in", "trace.npz"]

    def test_bombs_are_not_unpacked(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "trace.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("visual_scores.npy", b"")
        content = bytearray((tmp_path / "trace.npz").read_bytes())
        central = content.rindex(b"PK\x01\x02")
        content[central + 24 : central + 28] = (2**32 - 2).to_bytes(4, "little")  # the size it claims to have
        (tmp_path / "trace.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"'visual_scores\.npy' would unpack from 2 to 4294967294 bytes"):
            read_npz(tmp_path / "trace.npz")

    @settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_damage_anywhere_is_an_error_or_the_whole_trace(self, tmp_path, data):
        path = save(tmp_path, authors_fields(3), picture=False)
        whole, content = read_npz(path), bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            assert read_npz(path).data_hash == whole.data_hash
        except ValueError as error:
            assert str(path) in str(error)


TOKENS = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=5)


class TestTables:
    def test_one_row_per_step_layer_and_head_with_the_right_values(self):
        for heads in (False, True):
            trace = own(heads)
            table = step_table(trace)
            assert len(table) == 5 * 2 * (3 if heads else 1)
            rows: list[Any] = list(table.itertuples())
            for row in rows:
                head = None if row.head is pd.NA else row.head
                at = {"step": row.step, "layer": row.layer, **({} if head is None else {"head": head})}
                weights = trace.at(row.step, row.layer, head)
                assert row.mass == trace.mass.sel(at) and row.peak == weights.max()
                here = (trace.grid.row == row.peak_row) & (trace.grid.col == row.peak_col)
                assert weights[here].tolist() == [weights.max()]
                assert row.entropy_bits == pytest.approx(entropy_bits(weights))
                assert (row.token, row.token_id) == (trace.tokens[row.step], trace.token_ids[row.step])
                assert [row.k, row.budget] == [5, np.float32(0.1)] if row.step else row.k is pd.NA
        dense = step_table(own(pruned=False), own())
        assert all(dense["k"].isna().tolist()[:10]) and dense["id"].tolist() == ["own"] * 20

    @settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
    @given(TOKENS)
    @example(["\r", "a\r\nb", "=1+1", "NA", ""])  # a lone carriage return ends a row for some readers
    def test_any_token_survives_csv(self, tmp_path, tokens):
        trace = own(tokens=tokens)
        path = write_table([trace], tmp_path / "steps.csv", overwrite=True)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["token"] for row in rows] == [token for token in tokens for _ in trace.layers]
        mass = np.array([float(row["mass"]) for row in rows], np.float32)
        assert np.array_equal(mass, trace.mass.values.ravel())

    def test_parquet_when_pyarrow_is_there(self, tmp_path):
        pytest.importorskip("pyarrow", reason="the optional extra [parquet]")
        path = write_table([own(True), own()], tmp_path / "steps.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(path), step_table(own(True), own()), check_dtype=False)

    def test_parquet_without_pyarrow_says_how_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ImportError, match=r"needs pyarrow.*pip install 'visionpulse-analysis\[parquet\]'"):
            write_table([own()], tmp_path / "steps.parquet")
        assert list(tmp_path.iterdir()) == []

    def test_other_endings_and_existing_files(self, tmp_path):
        with pytest.raises(ValueError, match=r"\.csv or \.parquet, got 'steps\.xls'"):
            write_table([own()], tmp_path / "steps.xls")
        with pytest.raises(ValueError, match="no trace given"):
            write_table([], tmp_path / "steps.csv")
        write_table([own()], tmp_path / "steps.csv")
        with pytest.raises(FileExistsError, match="say overwrite"):
            write_table([own()], tmp_path / "steps.csv")


class TestBoxes:
    def test_boxes_are_the_patches_strongest_first(self):
        trace = own()
        boxes = patch_boxes(trace, 7, steps=[1, 3], top=4)
        assert [c["name"] for c in boxes["categories"]] == ["step 1: =1+1", "step 3: "]
        assert boxes["images"] == [{"id": 1, "width": 40, "height": 30, "file_name": "image_0.png"}]
        assert [a["id"] for a in boxes["annotations"]] == list(range(1, 9))
        for step in (1, 3):
            weights = trace.at(step, 7)
            found = [a for a in boxes["annotations"] if a["category_id"] == step + 1]
            assert [a["score"] for a in found] == sorted(weights.tolist(), reverse=True)[:4]
            for a in found:
                assert a["score"] == weights[a["patch"]] and a["kept"] == trace.kept.values[step, a["patch"]]
                left, top, width, height = a["bbox"]
                assert trace.grid.patch_at(left + width / 2, top + height / 2) == a["patch"]
                assert (width, height, a["area"], a["iscrowd"]) == (10, 10, 100, 0)
        every = patch_boxes(trace, 7)["annotations"]
        assert len(every) == 5 * 12

    def test_several_images_and_wrong_requests(self, tmp_path):
        boxes = patch_boxes(own(images=2), 2, steps=[0])
        assert {a["image_id"] for a in boxes["annotations"]} == {1, 2} and len(boxes["images"]) == 2
        files = write_boxes(own(images=2), tmp_path / "b" / "boxes.json", 2)
        assert [file.name for file in files] == ["boxes.json", "image_0.png", "image_1.png"]
        assert json.loads(files[0].read_text()) == json.loads(json.dumps(patch_boxes(own(images=2), 2)))
        with pytest.raises(FileExistsError):
            write_boxes(own(images=2), tmp_path / "b" / "boxes.json", 2)
        for wrong in ({"steps": [5]}, {"layer": 3}, {"layer": None}):
            with pytest.raises(IndexError):
                patch_boxes(own(), **{"layer": 2, **wrong})
        with pytest.raises(ValueError, match="top must be at least 1"):
            patch_boxes(own(), 2, top=0)


class TestCommands:
    def call(self, *words, code: int = 0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    def test_import_and_export_there_and_back(self, tmp_path):
        fields = {name: authors_fields(3 + n, sample_id=name) for n, name in enumerate(("one", "two"))}
        for name, arrays in fields.items():
            save(tmp_path / "in" / f"sample_{name}", arrays)
        done = json.loads(self.call("import", tmp_path / "in", "--store", tmp_path / "s", "--json").stdout)
        assert [trace["id"] for trace in done["traces"]] == ["one", "two"] == TraceStore(tmp_path / "s").ids
        written = json.loads(self.call("export", tmp_path / "s", tmp_path / "out", "--json").stdout)["written"]
        assert len(written) == 4
        for name, arrays in fields.items():
            assert_equal(load(tmp_path / "out" / name / "trace.npz"), arrays)
        self.call("export", tmp_path / "s", tmp_path / "steps.csv")
        assert pd.read_csv(tmp_path / "steps.csv")["id"].tolist() == ["one"] * 3 + ["two"] * 4
        self.call("export", tmp_path / "s", tmp_path / "boxes.json", "--sample", "two", "--top", 2)
        assert len(json.loads((tmp_path / "boxes.json").read_text())["annotations"]) == 4 * 2

    def test_one_saved_trace_is_exported_too(self, tmp_path):
        own().save(tmp_path / "saved")
        self.call("export", tmp_path / "saved", tmp_path / "a" / "trace.npz", "--layer", 2)
        assert_same(read_npz(tmp_path / "a" / "trace.npz"), own())

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("import", "IN/none.npz", "--store", "S"), "no trace.npz at"),
            (("import", "EMPTY", "--store", "S"), "no trace.npz under"),
            (("import", "IN", "--store", "S", "--id", "x"), "--id and --image are for one file"),
            (("import", "IN/a/trace.npz", "--store", "S", "--id", "../x"), "is no trace id"),
            (("import", "IN/a/trace.npz", "--store", "S"), "exists in"),
            (("export", "S", "OUT.doc"), "OUT must end in"),
            (("export", "S", "OUT.npz"), "choose one with --sample"),
            (("export", "S", "OUT.csv", "--sample", "none"), "no trace 'none'"),
            (("export", "EMPTY", "OUT.csv"), "no trace store at"),
            (("export", "IN", "OUT.csv"), "no trace store at"),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, words, message):
        for name in ("a", "b"):
            save(tmp_path / "in" / name, authors_fields(sample_id=name))
        (tmp_path / "empty").mkdir()
        self.call("import", tmp_path / "in", "--store", tmp_path / "s")
        places = {"IN": tmp_path / "in", "EMPTY": tmp_path / "empty", "S": tmp_path / "s", "OUT": tmp_path / "out"}
        filled = []
        for word in words:
            start = next((name for name in places if word == name or word.startswith((f"{name}/", f"{name}."))), None)
            filled.append(word if start is None else f"{places[start]}{word.removeprefix(start)}")
        result = self.call(*filled, code=2)
        assert message in result.stderr and "Traceback" not in result.output
        assert TraceStore(tmp_path / "s").ids == ["a", "b"] and not (tmp_path / "out.csv").exists()
