"""The folder of a sweep: whose it is, and what may lie in it."""

import resource
import shutil

import pytest

from visionpulse_analysis.experiments.sweeps.tables import Outcomes, SweepFolder
from visionpulse_analysis.experiments.sweeps.worker import SweepError, run_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_worker_must_see_the_folder(plain, tmp_path):
    task = {"folder": str(tmp_path / "elsewhere"), "token": "1"}
    with pytest.raises(
        SweepError, match=r"does not see the sweep's folder .*elsewhere .*on a disk that all workers share"
    ):
        run_batch(task)
    folder = SweepFolder(tmp_path / "elsewhere")
    with pytest.raises(SweepError, match="sees another sweep"):
        run_batch({**task, "token": folder.token + "0"})


def test_two_sweeps_of_one_folder_at_a_time_are_refused(sweep, plain, tmp_path):
    with SweepFolder(tmp_path / "out").locked(), pytest.raises(SweepError, match=r"is running in .*out already"):
        sweep(plain)


def test_other_folders_are_left_alone(sweep, plain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and is no sweep"):
        sweep(plain)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    (tmp_path / "out" / "sweep.json").write_text('{"kind": "visionpulse sweep", "format_version": 9, "token": ""}')
    with pytest.raises(ValueError, match="format version 9"):
        sweep(plain)
    (tmp_path / "out" / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep\.json is damaged"):
        sweep(plain)


def test_damaged_outcomes_are_named(sweep, plain, tmp_path):
    given = {**plain, "samples": {"scenes": {"n": 2, "cells": 4}}}
    sweep(given)
    outcomes = tmp_path / "out" / "outcomes.jsonl"
    outcomes.write_text("{}\n" + outcomes.read_text())
    with pytest.raises(ValueError, match=r"outcomes\.jsonl, line 1, is damaged .*delete the file"):
        sweep(given)


def test_parquet_without_pyarrow_is_refused_before_anything_is_made(sweep, plain, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="table: parquet needs pyarrow"):
        sweep({**plain, "table": "parquet"})
    assert not (tmp_path / "out").exists()


def test_a_kill_before_the_first_file_is_whole_leaves_a_sweep_that_can_be_run(sweep, plain, tmp_path):
    given = {**plain, "samples": {"scenes": {"n": 2, "cells": 4}}, "pruners": ["dense"]}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".sweep.json.0a1b2c3d").write_text("{")
    assert SweepFolder(tmp_path / "out").token
    shutil.rmtree(tmp_path / "out" / "traces")
    (tmp_path / "out" / "traces").mkdir()
    (tmp_path / "out" / "traces" / ".zarr.json.0a1b2c3d").write_text("{")
    assert sweep(given).finished == 2


def test_half_a_line_is_told_as_a_full_disk(tmp_path):
    outcomes = Outcomes(tmp_path / "outcomes.jsonl")
    outcomes.add([{"id": "a", "error": "x"}])
    size = outcomes.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*finished traces are kept"):
            outcomes.add([{"id": "b", "error": "y"}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Outcomes(outcomes.path).failures == {"a": ["x"]}, "and half a line is dropped"
