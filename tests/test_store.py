"""TraceStore: many traces, streamed step by step."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from made_steps import OPTIONAL, assert_same, expected, header, step, stream

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces.store import TraceStore


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(tmp_path / "store", mode="a")


def test_added_traces_are_found_again(store: TraceStore) -> None:
    for id in ["b", "a.1-_B"]:
        store.add(expected(id, 3, complete=True))
    for one in [store, TraceStore(store.path)]:
        assert one.ids == ["a.1-_B", "b"] == list(one) == one.finished_ids and len(one) == 2
        assert "b" in one and "c" not in one and "../b" not in one and 3 not in one
        assert_same(one["b"], expected("b", 3, complete=True))


@pytest.mark.parametrize("heads", [None, 3])
def test_streaming_gives_the_trace_made_in_one_stroke(store: TraceStore, heads: int | None) -> None:
    names = None if heads is None else list(range(heads))
    writer = store.writer("s", **header(heads=names))
    for t in range(4):
        writer.append(**step(t, heads))
        assert_same(TraceStore(store.path)["s"], expected("s", t + 1, complete=False, heads=heads))
    assert len(writer) == 4 and store.ids == ["s"] and store.finished_ids == []
    returned = writer.close(meta={"finished": True, "text": "x"})
    wanted = expected("s", 4, complete=True, heads=heads, finished=True, text="x")
    assert_same(store["s"], wanted)
    assert_same(returned, wanted)
    assert store.finished_ids == store.ids == ["s"]
    assert sorted(path.name for path in store.path.iterdir()) == [".lock", "s", "zarr.json"]
    assert zarr.open_array(store.path, path="s/attention", mode="r").shape[0] == 4


def test_dense_streams_bring_nothing_of_a_pruner(store: TraceStore) -> None:
    with store.writer("d", **header(optional=())) as writer:
        writer.append(**{name: value for name, value in step(0).items() if name not in OPTIONAL})
    assert store["d"].kept is None and store["d"].budget is None and store["d"].meta["complete"] is True


def test_32_writers_side_by_side(store: TraceStore) -> None:
    writers = [store.writer(f"w{i}", **header()) for i in range(32)]
    for t in range(3):
        for i, writer in enumerate(writers):
            if t <= i % 3:
                writer.append(**step(t))
    assert len(store) == 32 and not store.finished_ids
    for writer in writers:
        writer.close()
    for i in range(32):
        assert_same(store[f"w{i}"], expected(f"w{i}", i % 3 + 1, complete=True))


def test_a_whole_trace_is_replaced_only_when_the_new_one_is_closed(store: TraceStore) -> None:
    store.add(expected("o", 3, complete=True))
    for call in [lambda: store.writer("o", **header()), lambda: store.add(expected("o", 1, complete=True))]:
        with pytest.raises(FileExistsError, match=r"'o' exists .*overwrite=True"):
            call()
    writer = stream(store, "o", 2, overwrite=True)
    assert_same(store["o"], expected("o", 3, complete=True))
    writer.close()
    assert_same(store["o"], expected("o", 2, complete=True))
    store.add(expected("o", 1, complete=True), overwrite=True)
    assert_same(store["o"], expected("o", 1, complete=True))


def test_two_writers_of_one_id(store: TraceStore) -> None:
    writer = stream(store, "t", 1)
    for overwrite in [False, True]:
        with pytest.raises(FileExistsError, match="is being written by another writer"):
            TraceStore(store.path, mode="a").writer("t", **header(overwrite=overwrite))
        with pytest.raises(FileExistsError, match="is being written by another writer"):
            store.add(expected("t", 1, complete=True), overwrite=overwrite)
    writer.append(**step(1))
    writer.close()
    assert_same(store["t"], expected("t", 2, complete=True))


def test_a_step_that_does_not_fit_writes_nothing(store: TraceStore) -> None:
    writer = stream(store, "x", 1)
    wrong = [
        ({"attention": np.zeros((2, 5))}, ValueError, r"attention must have shape \(2, 6\), got \(2, 5\)"),
        ({"mass": 0.5}, ValueError, r"mass must have shape \(2,\), got \(\)"),
        ({"kept": np.ones(7, bool)}, ValueError, "kept must have shape"),
        ({"token": 3}, TypeError, "token must be str"),
        ({"token": "\ud800"}, ValueError, "token is not valid Unicode"),
        ({"extra": 3}, TypeError, r"append takes token and \['attention'"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match=message):
            writer.append(**{**step(1), **change})
    with pytest.raises(TypeError, match="append takes token and"):
        writer.append(**{name: value for name, value in step(1).items() if name != "k"})
    writer.append(**step(1))
    assert_same(writer.close(), expected("x", 2, complete=True))


@pytest.mark.parametrize("id", ["", ".hidden", "../x", "a/b", "a\\b", "a b", "ä", "a\n", "x" * 201, "..", None, 3])
def test_ids_that_are_no_safe_file_names_are_refused(store: TraceStore, id) -> None:
    with pytest.raises((ValueError, TypeError), match=r"no trace id|must be str"):
        store.writer(id, **header())
    with pytest.raises(ValueError, match="no trace id"):
        store.add(expected("a", 1, complete=True).with_meta({"id": id}))
    with pytest.raises(KeyError):
        store[id]
    assert {path.name for path in store.path.parent.rglob("*")} <= {"store", ".lock", "zarr.json"}


def test_wrong_headers_are_refused_before_anything_is_written(store: TraceStore) -> None:
    with pytest.raises(ValueError, match=r"optional takes \['kept'.*got \['colour'\]"):
        store.writer("x", **header(optional=["colour"]))
    with pytest.raises(TypeError, match=r"meta\['seed'\]"):
        store.writer("x", **header(meta={"seed": np.int64(1)}))
    with pytest.raises(ValueError, match=r"incomplete; keep it with trace\.save"):
        store.add(expected("x", 1, complete=False))
    assert store.ids == []


def test_a_missing_id_lists_what_exists(store: TraceStore) -> None:
    with pytest.raises(KeyError, match="it has 0 traces: none"):
        store["x"]
    for i in range(7):
        store.add(expected(f"t{i}", 1, complete=True))
    with pytest.raises(KeyError, match=r"no trace 'x' in .* it has 7 traces: t0, t1, t2, t3, t4, \.\.\."):
        store["x"]


def test_reading_mode_adds_nothing(store: TraceStore) -> None:
    reading = TraceStore(store.path)
    for call in [
        lambda: reading.writer("x", **header()),
        lambda: reading.add(expected("x", 1, complete=True)),
    ]:
        with pytest.raises(ValueError, match="open it with mode='a'"):
            call()
    with pytest.raises(ValueError, match="mode must be 'r'"):
        TraceStore(store.path, mode="w")  # pyright: ignore[reportArgumentType]


def test_hidden_leftovers_are_not_traces(store: TraceStore) -> None:
    (store.path / ".a.tmp-12345678").mkdir()
    (store.path / ".a.journal.tmp-12345678").write_bytes(b"x")
    (store.path / "notes.txt").write_text("x")
    assert store.ids == [] and "notes.txt" not in store


def test_appending_a_step_takes_well_under_a_millisecond(store: TraceStore) -> None:
    grid = PatchGrid.from_grid(range(256), rows=16, cols=16, image_sizes=[(128, 128)])
    writer = store.writer("fast", grid=grid, layers=[5], meta={})
    row = np.full((1, 256), 1 / 300, np.float16)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        writer.append(attention=row, mass=row.sum(-1), token="a", token_id=1, logprob=0.0)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 1e-3


def test_listing_opens_no_trace(store: TraceStore) -> None:
    """100,000 ids take a fraction of a second because only names are read."""
    for i in range(2000):
        (store.path / f"t{i}").mkdir()
    start = time.perf_counter()
    assert len(store.ids) == 2000 and "t7" in store
    assert time.perf_counter() - start < 1
    with pytest.raises(ValueError, match="t7 is not a visionpulse trace"):
        store["t7"]


def test_nothing_is_pickled(store: TraceStore) -> None:
    stream(store, "p", 1).abandon()
    assert b"numpy" not in (store.path / ".p.journal").read_bytes()  # a pickled array would name its module
    assert json.loads((store.path / "zarr.json").read_text())["zarr_format"] == 3
