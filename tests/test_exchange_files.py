"""Tables, boxes and the commands of exchange."""

import csv
import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exchanged import assert_equal, assert_same, authors_fields, load, own, save
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.exchange import patch_boxes, read_npz, step_table, write_boxes, write_table
from visionpulse_analysis.measures import entropy_bits
from visionpulse_analysis.store import TraceStore

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
