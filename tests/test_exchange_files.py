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
from PIL import Image
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.metrics.attention import entropy_bits
from visionpulse_analysis.traces.exchange import (
    import_traces,
    patch_boxes,
    read_npz,
    step_table,
    write_boxes,
    write_npz,
    write_npz_folder,
    write_table,
)
from visionpulse_analysis.traces.exchange.authors_npz import safe_id
from visionpulse_analysis.traces.store import TraceStore

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

    def test_an_image_that_lies_there_is_used_or_left_alone(self, tmp_path):
        trace, names = own(), lambda files: [file.name for file in files]
        assert names(write_boxes(trace, tmp_path / "one.json", 2)) == ["one.json", "image_0.png"]
        assert names(write_boxes(trace, tmp_path / "two.json", 2)) == ["two.json", "image_0.png"]
        for content in (b"mine", b""):
            (tmp_path / "image_0.png").write_bytes(content)
            out = tmp_path / f"three{len(content)}.json"
            files = write_boxes(trace, out, 2)
            assert names(files) == [out.name, f"{out.stem}_image_0.png"]
            assert json.loads(files[0].read_text())["images"][0]["file_name"] == files[1].name
            assert (tmp_path / "image_0.png").read_bytes() == content
            assert np.array_equal(read_image(files[1]), trace.images[0])
        (tmp_path / "four_image_0.png").write_bytes(b"mine, too")
        with pytest.raises(FileExistsError, match=r"four_image_0\.png exists"):
            write_boxes(trace, tmp_path / "four.json", 2)
        write_npz(trace, tmp_path / "a.npz", 2)
        write_npz(trace, tmp_path / "b.npz", 2)  # the picture is the same
        with pytest.raises(FileExistsError, match=r"b\.npz exists"):
            write_npz(trace, tmp_path / "b.npz", 2)

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
            save(tmp_path / "in" / name, arrays)
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
            (
                ("import", "IN", "--store", "S", "--id", "x"),
                "--id and --image are for one file, but IN holds 2: leave them",
            ),
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
        message = message.replace("IN", str(places["IN"]))
        result = self.call(*filled, code=2)
        assert message in result.stderr and "Traceback" not in result.output
        assert TraceStore(tmp_path / "s").ids == ["a", "b"] and not (tmp_path / "out.csv").exists()


class TestExportIsWholeOrNot:
    """Several files are all there at the end, or none of them."""

    @pytest.fixture
    def store(self, tmp_path):
        kept = TraceStore(tmp_path / "s", mode="a")
        for id, trace in {"a": own(), "b": own(images=2), "c": own()}.items():
            kept.add(trace.with_meta({**trace.meta, "id": id}))
        return kept

    def test_no_folder_is_written_where_one_trace_cannot_be(self, store, tmp_path):
        for layer, message in ((2, "trace 'b': trace.npz holds the steps of one still image"), (9, "trace 'a': ")):
            with pytest.raises((ValueError, IndexError), match=message):
                write_npz_folder(store, tmp_path / "deep" / "out", layer)
            assert not (tmp_path / "deep").exists()
        (tmp_path / "out" / "c").mkdir(parents=True)
        (tmp_path / "out" / "c" / "image.png").write_bytes(b"mine")
        some = {id: store[id] for id in "ac"}
        with pytest.raises(FileExistsError):
            write_npz_folder(some, tmp_path / "out", 2)
        assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["image.png"]
        assert len(write_npz_folder(some, tmp_path / "out", 2, overwrite=True)) == 4

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("pictures", [1, 2])
    def test_nothing_new_is_left_where_the_disk_is_full_or_the_user_stops(
        self, store, tmp_path, monkeypatch, error, pictures
    ):
        saved, written = Image.Image.save, []

        def full(image, draft, *args):
            if len(written) == pictures - 1:
                raise error
            written.append(draft)
            saved(image, draft, *args)

        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "note.txt").write_text("stays")
        monkeypatch.setattr(Image.Image, "save", full)
        with pytest.raises(type(error)):
            write_npz_folder({id: store[id] for id in "ac"}, tmp_path / "mine" / "out", 2)
        written.clear()
        with pytest.raises(type(error)):
            write_boxes(store["b"], tmp_path / "mine" / "boxes" / "boxes.json", 2)
        assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["note.txt"]


STRANGE = ("a b", "a:b", "图 1", "chart/12", "é", "..hidden", "-", "x" * 240, "a/../b")


class TestImportOfFolders:
    """Everything is checked before anything is changed, and two files never become one trace."""

    def contents(self, folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def test_files_with_one_sample_id_are_named_by_their_places(self, tmp_path):
        for place in ("run 1/s0", "run 1/s1", "run-1/s0", "s0", "."):
            save(tmp_path / "in" / place, authors_fields(3 + len(place), sample_id="0"))
        for overwrite in (False, True):  # the same names again
            named = import_traces(tmp_path / "in", tmp_path / "s", overwrite=overwrite)
            store = TraceStore(tmp_path / "s")
            assert len(store) == 5 and sorted(named) == store.ids and {"s0", "in"} < set(named)
            for id, file in named.items():
                trace = store[id]
                assert np.array_equal(trace.attention.values[:, 0], load(file)["visual_scores"])
                assert (trace.meta["id"], trace.meta["sample_id"]) == (id, "0")

    def test_a_file_in_the_folder_itself_does_not_take_the_name_of_another(self, tmp_path):
        for place in (".", "in", "deep/in"):
            save(tmp_path / "in" / place, authors_fields(3 + len(place)))
        named = import_traces(tmp_path / "in", tmp_path / "s")
        assert len(named) == len({*named.values()}) == len(TraceStore(tmp_path / "s")) == 3

    def test_folders_that_differ_by_case_stay_apart_on_every_disk(self, tmp_path):
        for place in ("A", "a"):
            save(tmp_path / "in" / place, authors_fields(3), picture=False)
        named = import_traces(tmp_path / "in", tmp_path / "s")
        assert len({name.lower() for name in named}) == 2 and "A" in named

    def test_another_id_keeps_the_one_of_an_exported_trace(self, tmp_path):
        trace = read_npz(save(tmp_path, authors_fields(3))).with_meta({"id": "mine"})
        (tmp_path / "out").mkdir()
        write_npz(trace, tmp_path / "out" / "trace.npz")
        import_traces(tmp_path / "out" / "trace.npz", tmp_path / "s", id="other")
        meta = TraceStore(tmp_path / "s")["other"].meta
        assert meta["id"] == "other" and meta["sample_id"] == "mine"

    @pytest.mark.parametrize("sample_id", STRANGE)
    def test_any_sample_id_names_a_trace(self, tmp_path, sample_id):
        path = save(tmp_path / "in", authors_fields(3, sample_id=sample_id))
        (id,) = import_traces(path, tmp_path / "s")
        trace = TraceStore(tmp_path / "s")[id]
        assert trace.meta["sample_id"] == sample_id and id == safe_id(sample_id) == safe_id(safe_id(sample_id))

    def test_names_differ_where_texts_do(self):
        texts = [*STRANGE, "a-b", "a b ", "a/b", "a\\b", "A b", "", ".", "..", "x" * 241]
        assert len({safe_id(text) for text in texts}) == len(texts)

    def test_any_folder_names_a_trace(self, tmp_path):
        for place in ("a b", "a:b", "图 1", "é", "-", "x" * 120 + "/" + "y" * 120):
            save(tmp_path / "in" / place, authors_fields(3, sample_id="0"), picture=False)
        assert len(import_traces(tmp_path / "in", tmp_path / "s")) == 6 == len(TraceStore(tmp_path / "s"))

    def test_nothing_is_changed_where_one_file_is_wrong(self, tmp_path):
        for name in ("a", "b"):
            save(tmp_path / "in" / name, authors_fields(3))
        save(tmp_path / "in" / "c", {"visual_scores": np.zeros(3)})
        with pytest.raises(ValueError, match=r"in/c/trace\.npz is not a trace"):
            import_traces(tmp_path / "in", tmp_path / "s")
        assert not (tmp_path / "s").exists()
        save(tmp_path / "in" / "c", authors_fields(4))
        import_traces(tmp_path / "in" / "c" / "trace.npz", tmp_path / "s", id="c")
        before = self.contents(tmp_path / "s")
        with pytest.raises(FileExistsError, match="'c' exists"):
            import_traces(tmp_path / "in", tmp_path / "s")
        assert self.contents(tmp_path / "s") == before

    def test_nothing_is_left_of_an_import_that_the_disk_ends(self, tmp_path, monkeypatch):
        for name in ("a", "b", "c"):
            save(tmp_path / "in" / name, authors_fields(3))
        TraceStore(tmp_path / "s", mode="a").add(own())
        add, added = TraceStore.add, []

        def full(self, trace, overwrite=False):
            if len(added) == 2:
                raise OSError(28, "No space left on device")
            added.append(trace.meta["id"])
            add(self, trace, overwrite)

        monkeypatch.setattr(TraceStore, "add", full)
        with pytest.raises(OSError, match="No space left"):
            import_traces(tmp_path / "in", tmp_path / "s")
        assert added == ["a", "b"] and TraceStore(tmp_path / "s").ids == ["own"]

    def test_what_other_programs_leave_is_passed_over(self, tmp_path):
        save(tmp_path / "in" / "a", authors_fields(3))
        for name in ("._trace.npz", ".DS_Store", "Thumbs.db", "._a/trace.npz", ".trash/b/trace.npz"):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\5\x16\7" + b"\0" * 4000)
        assert list(import_traces(tmp_path / "in", tmp_path / "s")) == ["a"]

    def test_a_folder_without_such_files_says_what_it_holds(self, tmp_path):
        save(tmp_path / "in", authors_fields(3), picture=False).rename(tmp_path / "in" / "vent.npz")
        with pytest.raises(FileNotFoundError, match=r"no trace\.npz under .*; it holds vent\.npz: name a file itself"):
            import_traces(tmp_path / "in", tmp_path / "s")
        assert list(import_traces(tmp_path / "in" / "vent.npz", tmp_path / "s")) == ["vent"]
