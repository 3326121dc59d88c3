"""TraceStore: many traces, streamed step by step; kills and full disks never cost a finished step."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from visionpulse_analysis.patches import PatchGrid
from visionpulse_analysis.store import StoreVersionError, TraceStore, TraceWriter
from visionpulse_analysis.traces import Trace, create_trace, files, journal

LAYERS = [2, 7]
GRID = PatchGrid.from_grid(range(3, 9), rows=2, cols=3, image_sizes=[(16, 24)])
IMAGE = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
OPTIONAL = ("kept", "budget", "k", "pruner_mass")


def step(t: int, heads: int | None = None) -> dict:
    """What step t brings; different at every step."""
    random = np.random.default_rng(t)
    rows = (len(LAYERS),) if heads is None else (len(LAYERS), heads)
    attention = random.dirichlet(np.ones(7), rows)[..., :6].astype(np.float16)
    kept = random.random(6) < 0.5
    return {
        **{
            "attention": attention,
            "mass": attention.astype(np.float32).sum(-1),
            "logprob": np.log(random.random()),
        },
        **{"token_id": int(random.integers(2**40)), "token": f" wörd{t} </i>"},
        **{
            "kept": kept,
            "k": kept.sum(),
            "budget": np.nan if t == 0 else 0.1 * t,
            "pruner_mass": random.random(),
        },
    }


def header(**change) -> dict:
    meta = {"question": "where ?", "seed": 1}
    return {
        **{"grid": GRID, "layers": LAYERS, "images": [IMAGE], "prompt_tokens": ["where"], "meta": meta},
        **{"optional": OPTIONAL, **change},
    }


def expected(id: str, steps: int, complete: bool, heads: int | None = None, **meta) -> Trace:
    """The same trace, made in one stroke."""
    rows = [step(t, heads) for t in range(steps)]
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return create_trace(
        **{name: column[name] for name in ("attention", "mass", *OPTIONAL)},
        **{
            "tokens": [row["token"] for row in rows],
            "token_ids": column["token_id"],
            "logprobs": column["logprob"],
        },
        **{"grid": GRID, "layers": LAYERS, "heads": None if heads is None else list(range(heads))},
        **{"images": [IMAGE], "prompt_tokens": ["where"]},
        meta={"question": "where ?", "seed": 1, "id": id, "complete": complete, **meta},
    )


def assert_same(found: Trace, wanted: Trace) -> None:
    a, b = found.dataset.load(), wanted.dataset.load()
    assert dict(a.attrs, meta=None) == dict(b.attrs, meta=None) and a.attrs["meta"] == b.attrs["meta"]
    xr.testing.assert_identical(a, b)
    assert found.data_hash == wanted.data_hash


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(tmp_path / "store", mode="a")


def stream(store: TraceStore, id: str, steps: int, **change) -> TraceWriter:
    writer = store.writer(id, **header(**change))
    for t in range(steps):
        writer.append(**step(t))
    return writer


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


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_store import TraceStore, header, step
writer = TraceStore(sys.argv[2], mode="a").writer("killed", **header())
for t in range(10**6):
    writer.append(**step(t))
    print(t, flush=True)
    time.sleep(0.001)
"""


def test_kill_9_leaves_every_finished_step(store: TraceStore) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(store.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for _ in range(20):
                process.stdout.readline()
            with pytest.raises(FileExistsError, match="is being written by another writer right now"):
                store.writer("killed", **header(overwrite=True))
        finally:
            os.kill(process.pid, signal.SIGKILL)
        told = 20 + len(process.stdout.readlines())
    assert process.returncode == -signal.SIGKILL
    trace = store["killed"]
    assert len(trace) in (told, told + 1)  # one more when the kill fell between the write and the print
    assert trace.meta["complete"] is False
    assert_same(trace, expected("killed", len(trace), complete=False))
    with pytest.raises(FileExistsError, match=r"'killed' \(incomplete\) exists .*overwrite=True"):
        store.writer("killed", **header())
    stream(store, "killed", 2, overwrite=True).close()
    assert_same(store["killed"], expected("killed", 2, complete=True))


def test_a_journal_cut_at_any_byte_gives_the_whole_steps_before(store: TraceStore) -> None:
    writer = stream(store, "c", 0)
    file = store.path / ".c.journal"
    ends = [file.stat().st_size]
    for t in range(3):
        writer.append(**step(t))
        ends.append(file.stat().st_size)
    writer.abandon()
    content = file.read_bytes()
    for cut in [*range(ends[0], ends[1] + 3), *range(ends[1] + 3, len(content) + 1, 9), len(content)]:
        file.write_bytes(content[:cut])
        trace = store["c"]
        assert len(trace) == sum(end <= cut for end in ends[1:]) and trace.meta["complete"] is False
        assert trace.tokens == [step(t)["token"] for t in range(len(trace))]
    for cut in [0, 5, 20, ends[0] // 2, ends[0] - 1]:
        file.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"\.c\.journal was killed before its first step; delete it"):
            store["c"]


def test_a_flipped_byte_ends_the_readable_part(store: TraceStore) -> None:
    writer = stream(store, "f", 2)
    file = store.path / ".f.journal"
    third = file.stat().st_size
    writer.append(**step(2))
    writer.abandon()
    content = file.read_bytes()
    for place in range(third, len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        trace = store["f"]
        assert len(trace) == 2
        np.testing.assert_array_equal(trace.attention[1], step(1)["attention"])


def test_a_disk_that_fills_while_streaming(store: TraceStore, monkeypatch) -> None:
    writer = stream(store, "full", 2)
    real = os.write

    def half(file: int, data) -> int:
        if len(data) < 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[: len(data) // 2])

    monkeypatch.setattr(journal.os, "write", half)
    with pytest.raises(OSError, match=r"No space left.*free some space.*the 2 steps before stay readable") as caught:
        writer.append(**step(2))
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(store.path / ".full.journal")
    assert_same(store["full"], expected("full", 2, complete=False))
    for call in [writer.close, lambda: writer.append(**step(2))]:
        with pytest.raises(ValueError, match="closed"):
            call()
    assert store.finished_ids == []


def test_a_real_file_size_limit_while_streaming(store: TraceStore) -> None:
    code = KILLED.replace(
        "writer =", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\nwriter ="
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(store.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    steps = len(done.stdout.splitlines())
    assert steps > 3 and f"the {steps} steps before stay readable" in done.stderr.splitlines()[-1]
    assert_same(store["killed"], expected("killed", steps, complete=False))


def test_a_disk_that_fills_while_closing(store: TraceStore, monkeypatch) -> None:
    writer = stream(store, "full", 2)

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_write_array", full)
    with pytest.raises(OSError, match=r"No space left.*free some space"):
        writer.close()
    assert_same(store["full"], expected("full", 2, complete=False))
    assert store.finished_ids == []
    monkeypatch.undo()
    writer.close()
    assert_same(store["full"], expected("full", 2, complete=True))


def test_a_disk_that_is_full_from_the_start(store: TraceStore, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(OSError, match=r"No space left.*nothing was written"):
        store.writer("full", **header())
    assert store.ids == [] and {path.name for path in store.path.iterdir()} == {".lock", "zarr.json"}


def test_an_exception_in_the_block_leaves_an_incomplete_trace(store: TraceStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.writer("x", **header()) as writer:
        writer.append(**step(0))
        raise KeyboardInterrupt
    assert_same(store["x"], expected("x", 1, complete=False))


def test_an_interrupted_write_takes_no_more_steps(store: TraceStore, monkeypatch) -> None:
    writer = stream(store, "x", 1)

    def interrupted(file: int, data) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(journal.os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.append(**step(1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="closed"):
        writer.append(**step(2))
    assert len(store["x"]) == 1


def test_a_journal_changed_behind_the_writer_is_not_taken_for_whole(store: TraceStore) -> None:
    writer = stream(store, "x", 3)
    file = store.path / ".x.journal"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ValueError, match="was changed: it holds 2 steps, 3 were written"):
        writer.close()
    assert store["x"].meta["complete"] is False and store.finished_ids == []


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


def test_a_folder_that_may_not_be_written(store: TraceStore, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="may not be written; open it with mode='r' or choose another folder"):
        TraceStore(store.path, mode="a")
    assert TraceStore(store.path).ids == []


def test_a_folder_that_became_read_only(store: TraceStore, monkeypatch) -> None:
    def denied(*_, **__) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(OSError, match=r"Read-only file system.*choose a folder you may write to"):
        store.writer("x", **header())
    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(OSError, match="choose a folder you may write to"):
        TraceStore(store.path / "new", mode="a")


def test_no_store_a_strange_folder_a_damaged_store_another_version(store: TraceStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trace store at .*mode='a'"):
        TraceStore(tmp_path / "none")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").write_text("x")
    with pytest.raises(ValueError, match="is no trace store; choose a new or empty folder"):
        TraceStore(tmp_path / "strange", mode="a")
    store.add(expected("a", 1, complete=True))
    with pytest.raises(ValueError, match="is not a visionpulse trace store"):
        TraceStore(store.path / "a")
    root = store.path / "zarr.json"
    content = root.read_text()
    root.write_text(content[:-5])
    with pytest.raises(ValueError, match=r"zarr\.json is damaged"):
        TraceStore(store.path)
    for mode in ["r", "a"]:
        root.write_text(content.replace('"format_version": 1', '"format_version": 99'))
        with pytest.raises(StoreVersionError, match="has format version 99, this package reads version 1; open it"):
            TraceStore(store.path, mode)  # pyright: ignore[reportArgumentType]


def test_a_journal_of_another_version(store: TraceStore, monkeypatch) -> None:
    monkeypatch.setattr(journal, "FORMAT_VERSION", 2)
    stream(store, "new", 1).abandon()
    monkeypatch.undo()
    with pytest.raises(StoreVersionError, match=r"\.new\.journal has format version 2"):
        store["new"]


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
