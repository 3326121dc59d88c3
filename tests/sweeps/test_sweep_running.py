"""A sweep in one process: what it stores, what it does about failures, and going on where it stopped."""

import gc
import json
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import visionpulse_analysis.decoding
import visionpulse_analysis.models
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.run import Run
from visionpulse_analysis.pruners import Random
from visionpulse_analysis.store import TraceStore
from visionpulse_analysis.studies.samples import scene_samples
from visionpulse_analysis.sweeps import worker
from visionpulse_analysis.sweeps.config import SweepConfig
from visionpulse_analysis.sweeps.folder import SweepFolder
from visionpulse_analysis.sweeps.plan import plan
from visionpulse_analysis.sweeps.results import Sweep
from visionpulse_analysis.sweeps.worker import SweepError, run_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(folder):
    """Every file of the finished traces, with what changes when it is written."""
    files = [path for path in (folder / "traces").rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def content_of(folder):
    """What two equal sweeps have in common: the table's bytes, and every trace without the time it was made."""
    store = TraceStore(folder / "traces")
    traces = {id: (store[id].data_hash, {**store[id].meta, "created": None}) for id in store.ids}
    return (folder / "table.csv").read_bytes(), traces


def test_every_trace_is_that_of_decode_and_its_row_says_what_it_holds(sweep, plain, vlm, tmp_path):
    summary = sweep(plain)
    assert (summary.planned, summary.finished, summary.before, summary.failed) == (12, 12, 0, 0)
    found = Sweep(tmp_path / "out")
    samples = scene_samples(6, cells=4, tasks=("find", "count"))
    jobs = plan(SweepConfig.from_plain(plain, folder=tmp_path))
    table = found.table.set_index("id")
    assert list(table.index) == [job.id for job in jobs] and sorted(found.store.ids) == sorted(table.index)
    for start in (0, 2, 4):
        pair, of_pair = samples[start : start + 2], jobs[2 * start : 2 * start + 4]
        for arm, pruner in ((0, None), (1, Random(budget=0.1))):
            chosen = of_pair[arm::2]
            traces = decode(
                vlm, [s.image for s in pair], [s.question for s in pair],
                pruner=pruner, seed=[job.row_seed for job in chosen], layers=[2, 5], max_new_tokens=6,
            )  # fmt: skip
            for job, sample, trace in zip(chosen, pair, traces, strict=True):
                row = table.loc[job.id]
                assert found.store[job.id].data_hash == trace.data_hash
                assert (row["sample"], row["question"], row["expected"]) == (
                    sample.id,
                    sample.question,
                    sample.truth.answer,
                )
                assert row["answer"] == trace.answer and row["tokens"] == len(trace.tokens)
                assert row["right"] == (trace.answer == sample.truth.answer)
                assert row["finished"] == trace.meta["finished"] and row["patches"] == 64
                assert row["kept"] == (1.0 if pruner is None else np.mean(trace.kept.values[1:]))
                assert row["mass"] == pytest.approx(trace.mass.values.mean(), rel=1e-6)
                assert row["logprob"] == pytest.approx(np.mean(trace.logprobs), rel=1e-6)
                assert row["weights"] == vlm.weights_hash
    assert table.loc[jobs[1].id, "kept"] == 6 / 64
    meta = found.store[jobs[1].id].meta["sweep"]
    assert meta == {"sample": "scene-10000000", "model": "tiny", "pruner": "random budget=0.1", "seed": 0}


def test_right_answers_are_told_from_wrong_ones(sweep, plain, tmp_path):
    """The bundled model answers scenes; then the same ones as files, with answers right, wrong and unknown."""
    samples = scene_samples(3, cells=4, tasks=("find",))
    answers = [f" {samples[0].truth.answer}  ", samples[1].truth.answer[::-1], None]
    lines = []
    for one, expected in zip(samples, answers, strict=True):
        Image.fromarray(one.image).save(tmp_path / f"{one.id}.png")
        lines.append({"image": f"{one.id}.png", "question": one.question, "id": one.id, "answer": expected})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = {**plain, "models": ["scenes"], "pruners": ["dense"], "decode": {"max_new_tokens": 40}}
    sweep({**given, "samples": {"scenes": {"n": 3, "cells": 4, "tasks": ["find"]}}})
    table: Any = Sweep(tmp_path / "out").table
    assert table["right"].tolist() == [True] * 3 and table["finished"].all()
    assert table["answer"].tolist() == [one.truth.answer for one in samples]
    sweep({**given, "samples": {"table": {"path": "rows.jsonl"}}})
    again: Any = Sweep(tmp_path / "out").table
    assert again["right"].tolist() == [True, False, pd.NA] and again["answer"].tolist() == table["answer"].tolist()


def test_the_model_is_loaded_once_and_another_one_after_it(sweep, plain, scenes_folder, monkeypatch):
    loaded, load = [], visionpulse_analysis.models.load
    monkeypatch.setattr(visionpulse_analysis.models, "load", lambda name, **o: loaded.append(name) or load(name, **o))
    worker._ready.clear()
    other = {"name": str(scenes_folder), "label": "half", "dtype": "bfloat16"}
    sweep({**plain, "models": [*plain["models"], other]})
    assert loaded == [str(scenes_folder)] * 2


def test_a_batch_leaves_nothing_of_its_decode_in_memory(sweep, plain, monkeypatch):
    """Reference cycles would keep tensors of every batch until Python happens to collect them."""
    left: list[int] = []

    def count():
        left.append(sum(isinstance(thing, Run | Batch) for thing in gc.get_objects()))
        return 1.0

    monkeypatch.setattr(worker, "memory_mb", count)  # the last thing a batch does
    gc.collect()
    gc.disable()
    try:
        sweep(plain)
    finally:
        gc.enable()
    assert left == [0] * 6


@pytest.mark.parametrize("lost", ["some traces", "the outcomes", "the end of a line", "the table"])
def test_going_on_gives_the_same_and_touches_nothing_finished(sweep, plain, tmp_path, monkeypatch, lost):
    sweep(plain)
    folder = tmp_path / "out"
    before, ids = content_of(folder), TraceStore(folder / "traces").ids
    outcomes = folder / "outcomes.jsonl"
    if lost == "some traces":
        for id in (ids[0], ids[7], ids[8]):
            shutil.rmtree(folder / "traces" / id)
    elif lost == "the outcomes":
        outcomes.unlink()
    elif lost == "the end of a line":
        outcomes.write_bytes(outcomes.read_bytes()[:-40])
    (folder / "table.csv").unlink()
    untouched = state_of(folder)
    if lost != "some traces":
        monkeypatch.setattr(worker, "run_batch", None)
        monkeypatch.setattr(visionpulse_analysis.decoding, "decode", None)
    summary = sweep(plain)
    assert summary.before == (9 if lost == "some traces" else 12) and summary.finished == 12
    assert content_of(folder) == before
    after = state_of(folder)
    assert {path: after[path] for path in untouched} == untouched
    lines = [json.loads(line)["id"] for line in outcomes.read_text().splitlines()]
    assert set(lines) == set(ids)


def test_more_samples_and_pruners_are_added_to_what_is_there(sweep, plain, tmp_path):
    small = {**plain, "samples": {"scenes": {"n": 2, "cells": 4, "tasks": ["find", "count"]}}, "pruners": ["dense"]}
    assert sweep(small).finished == 2
    untouched = state_of(tmp_path / "out")
    summary = sweep(plain)
    assert (summary.before, summary.finished) == (2, 12)
    after = state_of(tmp_path / "out")
    assert {path: after[path] for path in untouched} == untouched
    assert sweep(small).planned == 2 and len(Sweep(tmp_path / "out").table) == 2


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
    # In its batch of two, alone after that; alone once more: the retry.
    assert (tmp_path / "notes").read_text().split() == ["2", "1", "1"]
    table: Any = Sweep(tmp_path / "out").table
    [failed] = table[table["status"] == "failed"].to_dict("records")
    assert failed["error"] == "RuntimeError: this row is cursed" and failed["pruner"] == "cursed"
    assert failed["sample"] == "scene-10000001" and pd.isna(failed["tokens"]) and failed["question"]
    assert (table["status"] == "done").sum() == 11 and len(Sweep(tmp_path / "out").finished) == 11
    log = (tmp_path / "out" / "sweep.log").read_text()
    assert f"{failed['id']} failed: RuntimeError: this row is cursed" in log and "Traceback" in log

    before = content_of(tmp_path / "out")
    assert sweep({**given, "retries": 1}).failed == 1
    assert (tmp_path / "notes").read_text().split() == ["2", "1", "1"], "failed for good: not tried by later runs"
    assert content_of(tmp_path / "out") == before
    assert sweep({**given, "retries": 1}, retry_failed=True).failed == 1
    assert (tmp_path / "notes").read_text().split()[3:] == ["2", "1", "1"]


def test_attempts_are_counted_across_runs(sweep, fragile, tmp_path):
    given = fragile(99, "across")
    assert sweep({**given, "retries": 0}).failed == 1
    assert sweep({**given, "retries": 3}).failed == 1
    assert (tmp_path / "notes").read_text().split() == ["2", "1", "1", "1", "1"]


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
        ({"pruners": [{"name": "random", "anchor_layer": 99}]}, "cannot be decoded with 'random'"),
    ],
)
def test_what_fails_for_every_sample_stops_the_sweep_at_once(sweep, plain, tmp_path, change, message):
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


def test_other_weights_under_the_same_name_are_refused(sweep, plain, scenes_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(scenes_folder, tmp_path / "model")
    given = {**plain, "models": [{"name": str(tmp_path / "model"), "label": "tiny"}], "pruners": ["dense"]}
    sweep({**given, "samples": {"scenes": {"n": 2, "cells": 4}}})
    [file] = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if tensors[name].ndim == 2)
    tensors[name][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    worker._ready.clear()
    untouched = state_of(tmp_path / "out")
    with pytest.raises(SweepError, match=r"has other weights .* than when this sweep began"):
        sweep({**given, "samples": {"scenes": {"n": 4, "cells": 4}}})
    assert state_of(tmp_path / "out") == untouched


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
