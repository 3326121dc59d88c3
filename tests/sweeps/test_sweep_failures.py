"""What a sweep does about failures: of one sample, and of everything."""

import json
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from folder_contents import content_of, state_of
from PIL import Image

from visionpulse_analysis.experiments.sweeps import worker
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.samples import plan
from visionpulse_analysis.experiments.sweeps.worker import SweepError
from visionpulse_analysis.traces.store import TraceStore

pytestmark = pytest.mark.usefixtures("one_thread")


FRAGILE = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from visionpulse_analysis.pruners import Random

@dataclass(frozen=True)
class {name}(Random):
    name: ClassVar[str] = "{name}"
    notes: str = ""
    seed: int = 0
    times: int = 99

    def start(self, layout):
        notes = Path(self.notes)
        seen = notes.read_text().split() if notes.exists() else []
        if self.seed in layout.seeds:
            notes.write_text(" ".join([*seen, str(len(layout.seeds))]))
            if len([n for n in seen if n == "1"]) < self.times:
                raise RuntimeError("this row is cursed")
        return super().start(layout)
"""


@pytest.fixture
def fragile(plain, tmp_path):
    """A sweep in which one sample fails with one pruner, so many times when it is alone, and always in a batch."""

    def make(times, name):
        (tmp_path / f"module_{name}.py").write_text(FRAGILE.format(name=name))
        seed = plan(SweepConfig.from_plain(plain, folder=tmp_path))[2].row_seed
        arm = {"name": name, "notes": str(tmp_path / "notes"), "seed": seed, "times": times, "label": "cursed"}
        return {**plain, "pruners": ["dense", arm], "modules": [f"module_{name}"]}

    return make


def test_a_failing_sample_is_tried_again_a_bounded_number_of_times_and_recorded(sweep, fragile, tmp_path):
    given = fragile(99, "always")
    summary = sweep({**given, "retries": 1})
    assert (summary.planned, summary.finished, summary.failed) == (12, 11, 1)
    # In its batch of two, with the other pruner and without, alone after that; alone once more: the retry.
    assert (tmp_path / "notes").read_text().split() == ["2", "2", "1", "1"]
    table: Any = Sweep(tmp_path / "out").table
    [failed] = table[table["status"] == "failed"].to_dict("records")
    assert failed["error"] == "RuntimeError: this row is cursed" and failed["pruner"] == "cursed"
    assert failed["sample"] == "scene-10000001" and pd.isna(failed["tokens"]) and failed["question"]
    assert (table["status"] == "done").sum() == 11 and len(Sweep(tmp_path / "out").finished) == 11
    log = (tmp_path / "out" / "sweep.log").read_text()
    assert f"{failed['id']} failed: RuntimeError: this row is cursed" in log and "Traceback" in log

    before = content_of(tmp_path / "out")
    assert sweep({**given, "retries": 1}).failed == 1
    assert (tmp_path / "notes").read_text().split() == ["2", "2", "1", "1"], "failed for good: not tried by later runs"
    assert content_of(tmp_path / "out") == before
    assert sweep({**given, "retries": 1}, retry_failed=True).failed == 1
    assert (tmp_path / "notes").read_text().split()[4:] == ["2", "1", "1"]


def test_attempts_are_counted_across_runs(sweep, fragile, tmp_path):
    given = fragile(99, "across")
    assert sweep({**given, "retries": 0}).failed == 1
    assert sweep({**given, "retries": 3}).failed == 1
    assert (tmp_path / "notes").read_text().split() == ["2", "2", "1", "1", "1", "1"]


def test_a_sample_that_recovers_is_done(sweep, fragile, tmp_path):
    given = fragile(2, "passing")
    summary = sweep({**given, "retries": 2})
    assert (summary.finished, summary.failed) == (12, 0)
    assert Sweep(tmp_path / "out").table["error"].tolist() == [pd.NA] * 12


def test_unreadable_images_fail_alone(sweep, plain, pictures, tmp_path):
    for name in ("a", "b", "c"):
        Image.fromarray(pictures[0]).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    rows = [{"image": f"{name}.png", "question": "where ?", "id": name} for name in ("a", "b", "gone", "c")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {**plain, "samples": {"table": {"path": "rows.jsonl"}}, "pruners": ["dense"]}
    given["decode"] = {**plain["decode"], "batch_size": 4}
    assert sweep(given).failed == 2
    table: Any = Sweep(tmp_path / "out").table.set_index("sample")
    assert table["status"].to_dict() == {"a": "done", "b": "failed", "gone": "failed", "c": "done"}
    assert "b.png is not a readable image" in table.loc["b", "error"]
    assert table.loc["gone", "error"].startswith("FileNotFoundError: no image at")

    untouched = state_of(tmp_path / "out")
    (tmp_path / "b.png").write_bytes(whole)
    assert sweep(given).failed == 1, "a mended file is another sample and gets its attempts"
    after = state_of(tmp_path / "out")
    assert {path: after[path] for path in untouched} == untouched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["no-such-model"]}, "the model 'no-such-model' cannot be loaded: ValueError: no model"),
        ({"decode": {"layers": [99]}}, "cannot be decoded with 'dense' and these options: .*layers"),
        ({"decode": {"layers": [-1]}}, "cannot be decoded with 'dense' and these options: .*layers"),
        ({"pruners": [{"name": "random", "anchor_layer": 99}]}, "cannot be decoded with 'random'"),
    ],
)
def test_what_fails_for_every_sample_stops_the_sweep_at_once(sweep, plain, tmp_path, change, message):
    one = {"scenes": {"n": 1, "cells": 4}}
    sweep({**plain, "out": "before", "samples": one, "pruners": ["dense", {"name": "random", "anchor_layer": 3}]})
    with pytest.raises(SweepError, match=message):
        sweep({**plain, **change})
    assert not Sweep(tmp_path / "out").store.ids and len(Sweep(tmp_path / "out").table) == 0
    assert not (tmp_path / "out" / "outcomes.jsonl").read_text()
    assert "stopped: " in (tmp_path / "out" / "sweep.log").read_text()


def test_a_full_disk_is_no_samples_fault(sweep, plain, tmp_path, monkeypatch):
    add, added = TraceStore.add, []

    def full(store, trace, overwrite=False):
        if len(added) == 3:
            raise OSError(28, "cannot write (No space left on device)", str(store.path))
        added.append(trace.meta["id"])
        add(store, trace, overwrite)

    with monkeypatch.context() as patched:
        patched.setattr(TraceStore, "add", full)
        with pytest.raises(SweepError, match="No space left"):
            sweep(plain)
    assert set(Sweep(tmp_path / "out").store.ids) == set(added)
    assert set(Sweep(tmp_path / "out").table["id"]) <= set(added)
    assert sweep(plain).finished == 12


class BrokenGPU:
    """A model on a GPU that answers nothing any more."""

    device = torch.device("cuda")

    def parameters(self):
        raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("nanny", [True, False])
def test_a_worker_with_a_broken_gpu_ends_where_another_takes_its_place(monkeypatch, nanny):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(worker.os, "_exit", leave)
    monkeypatch.setattr(worker.multiprocessing, "parent_process", lambda: object() if nanny else None)
    with pytest.raises(SystemExit if nanny else SweepError):
        worker._check_device(SimpleNamespace(model=BrokenGPU()))
