"""Kills, full disks, interrupts and damage never cost a finished step of a store."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_steps import assert_same, expected, header, step, stream

from visionpulse_analysis.traces import journal
from visionpulse_analysis.traces import zarr_group as files
from visionpulse_analysis.traces.store import StoreVersionError, TraceStore


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(tmp_path / "store", mode="a")


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from made_steps import header, step
from visionpulse_analysis.traces.store import TraceStore
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
