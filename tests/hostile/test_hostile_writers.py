"""Several writers, kills, folders that may not be written, full disks: every finished trace stays as it was."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from test_hostile_stores import everything, made

from visionpulse_analysis.traces import Trace
from visionpulse_analysis.traces.store import TraceStore


def child(code: str, *words: object) -> subprocess.Popen:
    """Start a Python process that has the names of both files."""
    start = "import sys; sys.path.insert(0, sys.argv[1])\n"
    start += "from test_hostile_stores import *\nfrom test_hostile_writers import *\n"
    command = [sys.executable, "-c", start + code, str(Path(__file__).parent), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


REPLACING = """
a, b = made("a"), made("a", seed=1)
a.save(sys.argv[2])
print("ready", flush=True)
while True:
    b.save(sys.argv[2], overwrite=True)
    a.save(sys.argv[2], overwrite=True)
"""


def test_replacing_a_trace_never_leaves_none_not_even_under_kill_9(tmp_path):
    both = [everything(made("a", seed=seed)) for seed in (0, 1)]
    read = 0
    for _ in range(3):
        with child(REPLACING, tmp_path / "a") as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            for _ in range(40):
                try:
                    assert everything(Trace.open(tmp_path / "a")) in both
                    read += 1
                except ValueError as error:
                    assert "damaged" in str(error) or "was replaced" in str(error)
            os.kill(process.pid, signal.SIGKILL)
        assert everything(Trace.open(tmp_path / "a")) in both
        (tmp_path / "a").rename(tmp_path / f"old{read}")
    assert read


KILLED_BETWEEN = """
def killed(*_): os._exit(9)
Path.rename = killed
made("a", seed=1).save(sys.argv[2], overwrite=True)
"""


def test_there_is_no_moment_between_the_old_trace_and_the_new_one(tmp_path):
    made("a").save(tmp_path / "a")
    with child(KILLED_BETWEEN, tmp_path / "a") as process:
        pass
    assert process.returncode == 0
    assert everything(Trace.open(tmp_path / "a")) == everything(made("a", seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


WRITING = """
store, seed = TraceStore(sys.argv[2], mode="a"), int(sys.argv[3])
for n in range(12):
    trace = made(f"t{n}", seed=seed)
    try:
        if n % 2: store.add(trace)
        else: stream(store, trace).close()
        print(n, flush=True)
    except FileExistsError:
        pass
"""


def test_writers_in_four_processes_write_every_trace_once(tmp_path):
    processes = [child(WRITING, tmp_path / "s", seed) for seed in range(4)]
    written = [[int(line) for line in process.communicate()[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(n for numbers in written for n in numbers) == list(range(12))
    store = TraceStore(tmp_path / "s")
    assert len(store.finished_ids) == 12 == len(store)
    for seed, numbers in enumerate(written):
        for n in numbers:
            assert everything(store[f"t{n}"])[0] == made(f"t{n}", seed=seed).data_hash


READ_ONLY = """
everything(TraceStore(sys.argv[2])["a"])  # imports what it needs while it may read everything
if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)
assert everything(TraceStore(sys.argv[2])["a"]) == everything(made("a"))
for call in [
    lambda: TraceStore(sys.argv[2], mode="a"),
    lambda: TraceStore(sys.argv[2] + "/new", mode="a"),
    lambda: made("b").save(sys.argv[2] + "/b"),
]:
    try:
        call()
    except OSError as error:
        print(error)
"""


def test_a_folder_that_may_only_be_read():
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which other users cannot enter
        Path(folder).chmod(0o755)
        TraceStore(Path(folder) / "s", mode="a").add(made("a"))
        before = sorted(Path(folder).rglob("*"))
        (Path(folder) / "s").chmod(0o555)
        with child(READ_ONLY, Path(folder) / "s") as process:
            lines = process.communicate()[0].splitlines()
        assert process.returncode == 0 and len(lines) == 3
        assert all("may not be written" in line or "a folder you may write to" in line for line in lines)
        assert sorted(Path(folder).rglob("*")) == before
        (Path(folder) / "s").chmod(0o755)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store = TraceStore(sys.argv[2], mode="a")
for call in [lambda: store.add(made("b", seed=1)), lambda: store.add(made("a", seed=1), overwrite=True)]:
    try:
        call()
    except OSError as error:
        print(error)
"""


def test_a_disk_without_room_costs_no_finished_trace(tmp_path):
    store = TraceStore(tmp_path / "s", mode="a")
    store.add(made("a"))
    with child(FULL, store.path) as process:
        lines = process.communicate()[0].splitlines()
    assert process.returncode == 0 and len(lines) == 2
    assert all("nothing was written" in line for line in lines)
    assert store.ids == ["a"] and everything(store["a"]) == everything(made("a"))
    assert {path.name for path in store.path.iterdir()} == {"zarr.json", ".lock", "a"}
