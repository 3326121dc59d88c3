"""Real processes are killed while a sweep runs; what comes out is what an uninterrupted sweep gives."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_batches
import psutil
import pytest
import yaml
from dask import config as dask_config
from distributed import Client
from folder_contents import content_of, state_of

from visionpulse_analysis.experiments.sweeps import running
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.worker import SweepError
from visionpulse_analysis.traces.store import TraceStore

FAKE = "import fake_batches; from visionpulse_analysis.experiments.sweeps import running; "
FAKE += "running.run_batch = fake_batches.run_batch"
CLI = [sys.executable, "-c", "from visionpulse_analysis.cli import app; app()"]
PATIENCE = 240.0  # seconds until a process that does nothing fails the test; never reached when all is well


def until(condition, process=None):
    """Wait for a condition; fails when the process ends before it, or when nothing happens."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"the process ended with {process.returncode} too early:\n{process.stderr.read()}")
        if time.monotonic() > deadline:
            pytest.fail("nothing happened")
        time.sleep(0.01)


def finished(folder: Path) -> int:
    return len(TraceStore(folder / "traces").finished_ids) if (folder / "traces" / "zarr.json").exists() else 0


@contextmanager
def started(*command, **environment):
    """A process that is killed, with all its children, at the end of the block."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"stdout": pipe, "stderr": pipe, "text": True, "env": env, "start_new_session": True}
    with subprocess.Popen(list(map(str, command)), **options) as process:
        family: list[psutil.Process] = []
        try:
            yield process
        finally:
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            for child in family:
                if child.is_running():
                    child.kill()


def workers_of(process) -> list[psutil.Process]:
    """The dask worker processes below a process."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_cursed_sample_is_recorded_and_costs_no_other_one(sweep, plain, tmp_path, monkeypatch):
    """It kills every worker that takes it; batches that wait at the same worker die with it and must not be blamed."""
    monkeypatch.setenv("CURSED", "scene-10000003")
    monkeypatch.setattr(running, "run_batch", fake_batches.run_batch)
    given = {**plain, "samples": {"scenes": {"n": 12, "cells": 4}}, "pruners": ["dense"], "retries": 0}
    with dask_config.set({"distributed.scheduler.allowed-failures": 1}):
        summary = sweep(given, workers=1)
    assert (summary.finished, summary.failed) == (11, 1)
    table: Any = Sweep(tmp_path / "out").table
    [row] = table[table["status"] == "failed"].to_dict("records")
    assert row["sample"] == "scene-10000003" and row["error"].startswith("KilledWorker: 2 workers died over it")
    # Two deaths in its batch, two alone, and then never again.
    assert (tmp_path / "out" / "attempts").read_text().split() == ["2", "2", "1", "1"]
    assert sweep(given, workers=0).failed == 1


def test_killed_workers_are_replaced_and_nothing_is_lost(sweep, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "run_batch", fake_batches.run_batch)
    folder, killed = tmp_path / "out", []

    def kill():
        for enough in (4, 20):
            until(lambda enough=enough: finished(folder) >= enough)
            killed.append(max(folder.glob("process-*"), key=lambda path: path.stat().st_mtime_ns))
            os.kill(int(killed[-1].name.split("-")[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    given = {**plain, "samples": {"scenes": {"n": 60, "cells": 4}}, "pruners": ["dense"], "retries": 0}
    summary = sweep(given, workers=1)
    killer.join()
    assert len(set(killed)) == 2 and (summary.finished, summary.failed) == (60, 0)
    assert len(list(folder.glob("process-*"))) == 3
    table: Any = Sweep(folder).table
    assert len(table) == 60 == table["id"].nunique() and sorted(table["id"]) == Sweep(folder).store.ids


@pytest.fixture
def long(plain):
    return {
        **plain,
        "samples": {"scenes": {"n": 10, "cells": 4}},
        "decode": {"max_new_tokens": 40, "batch_size": 2, "layers": [2, 5]},
        "pruners": ["dense", {"name": "visionpulse", "budget": 0.1}],
    }


def write(given: dict, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**given, "out": "out"}))
    return path


@pytest.mark.slow
def test_killing_a_worker_and_then_everything(sweep, long, tmp_path, one_thread):
    """The real command, twice: its worker is killed, then all its processes; then it goes on to the end."""
    sweep({**long, "out": "whole"})
    config = write(long, tmp_path / "killed")
    folder = tmp_path / "killed" / "out"
    command = [*CLI, "sweep", config, "--workers", 1]
    with started(*command) as driver:
        until(lambda: finished(folder) >= 2, driver)
        [worker] = workers_of(driver)
        worker.kill()
        until(lambda: finished(folder) >= 6 and workers_of(driver), driver)
        [second] = workers_of(driver)
        assert second.pid != worker.pid
        driver.kill()
        second.wait(PATIENCE)  # a worker does not outlive its sweep
    cut = finished(folder)
    assert 6 <= cut < 20
    untouched = state_of(folder)
    with started(*command, "--json") as driver:
        out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, err
    assert f"20 traces planned, {cut} finished" in err and "dask dashboard: http://127.0.0.1:" in err
    assert "20/20" in err and "trace" in err
    assert '"finished": 20' in out
    after = state_of(folder)
    assert {path: after[path] for path in untouched} == untouched
    assert content_of(folder) == content_of(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_says_what_is_kept(plain, tmp_path, monkeypatch):
    given = {**plain, "samples": {"scenes": {"n": 100, "cells": 4}}}
    config = write(given, tmp_path / "stopped")
    folder = tmp_path / "stopped" / "out"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would pass "ignore" on
    try:
        with started(sys.executable, "-c", f"{FAKE}; {CLI[-1]}", "sweep", config, "--workers", 2) as driver:
            until(lambda: finished(folder) >= 20, driver)
            os.killpg(driver.pid, signal.SIGINT)
            _, err = driver.communicate(timeout=PATIENCE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert driver.returncode == 130 and "Traceback" not in err, err
    assert 0 < len(Sweep(folder).table) <= finished(folder) < 200
    assert "interrupted; finished traces are kept, and the same command goes on" in err
    assert "stopped: KeyboardInterrupt" in (folder / "sweep.log").read_text()


@pytest.mark.parametrize("asked", ["nthreads", "submit"])
def test_whatever_is_asked_of_the_scheduler_may_find_it_gone(sweep, plain, monkeypatch, asked):
    def gone(*_, **options):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(Client, asked, gone)
    with pytest.raises(SweepError, match=r"scheduler was lost \(ConnectionResetError\); 0 traces are finished"):
        sweep(plain)


@pytest.mark.slow
def test_killing_the_scheduler(sweep, plain, tmp_path, monkeypatch):
    """An existing cluster whose scheduler is killed; a new one, and the same command. The batches are fakes."""
    monkeypatch.setattr(running, "run_batch", fake_batches.run_batch)
    given = {**plain, "samples": {"scenes": {"n": 100, "cells": 4}}}
    sweep({**given, "out": "whole"})
    config = write(given, tmp_path / "killed")
    folder, address = tmp_path / "killed" / "out", tmp_path / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0]
    scheduler += ["--no-dashboard", "--scheduler-file", address]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", address, "--nthreads", 1]
    worker += ["--no-dashboard", "--local-directory", tmp_path]
    here = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}

    def command():
        until(lambda: address.exists() and address.read_text().strip())
        fake = [sys.executable, "-c", f"{FAKE}; {CLI[-1]}", "sweep", config]
        return [*fake, "--scheduler", yaml.safe_load(address.read_text())["address"]]

    with started(*scheduler, **here) as first, started(*worker, **here) as orphan:
        with started(*command(), **here) as driver:
            until(lambda: finished(folder) >= 20, driver)
            first.kill()
            _, err = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 2 and "the dask scheduler was lost" in err, err
        assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err, err
        orphan.wait(PATIENCE)
    cut = finished(folder)
    assert 20 <= cut < 200
    untouched = state_of(folder)
    address.unlink()
    with started(*scheduler, **here), started(*worker, **here), started(*command(), **here) as driver:
        _, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, err
    after = state_of(folder)
    assert {path: after[path] for path in untouched} == untouched
    assert content_of(folder) == content_of(tmp_path / "whole")


def test_no_scheduler_at_the_address(sweep, plain):
    patience = dask_config.set({"distributed.comm.timeouts.connect": "1s"})
    with patience, pytest.raises(OSError, match=r"no dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        sweep(plain, scheduler="tcp://127.0.0.1:1", workers=None)
    with pytest.raises(ValueError, match="for a local cluster only"):
        sweep(plain, scheduler="tcp://127.0.0.1:1", workers=1)
