"""A sweep in one process: what it stores, and what it leaves in memory."""

import gc
import json
import queue
import threading
from threading import Event, Timer
from typing import Any

import fake_batches
import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import LocalCluster
from PIL import Image

import visionpulse_analysis.decoding
import visionpulse_analysis.models.loading
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.batch import Batch
from visionpulse_analysis.decoding.run import Run
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.experiments.sweeps import cluster, running, tables, worker
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.samples import plan
from visionpulse_analysis.pruners import Random

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_is_looked_for_where_the_file_lies_before_any_worker_starts(
    sweep, plain, scenes_folder, tmp_path, monkeypatch
):
    (tmp_path / "near").symlink_to(scenes_folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plain |= {"models": [{"name": "./near", "label": "tiny"}], "pruners": ["dense"]}
    plain["samples"]["scenes"]["n"] = 2
    assert sweep(plain).finished == 2
    monkeypatch.setattr(cluster, "connect", lambda *given: pytest.fail("workers were started"))
    with pytest.raises(worker.SweepError, match=r"the model '/.*/nothing' cannot be loaded: ValueError: no model"):
        sweep(plain | {"models": ["./nothing"]})


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
    loaded, load = [], visionpulse_analysis.models.loading.load
    monkeypatch.setattr(
        visionpulse_analysis.models.loading, "load", lambda name, **o: loaded.append(name) or load(name, **o)
    )
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
    assert left == [0] * 3  # batches of two samples, both pruners from one prefill


def test_pruners_and_seeds_share_the_prefill_of_their_samples(sweep, plain, monkeypatch, tmp_path):
    read, prefill = [], Batch.prefill
    monkeypatch.setattr(Batch, "prefill", lambda batch: read.append(len(batch.records)) or prefill(batch))
    worker._ready.clear()
    fastv = {"name": "fastv", "layer": 3, "budget": 0.2}  # acts in prefill
    given = {**plain, "samples": {"scenes": {"n": 2, "cells": 4}}, "seeds": [0, 1]}
    assert sweep({**given, "pruners": [*plain["pruners"], fastv]}).finished == 12
    assert sorted(read) == [1, 1, 1, 2, 2, 2]  # each pruner tried out; then one prefill for four arms, and two of fastv
    found = Sweep(tmp_path / "out")
    sweep({**given, "out": str(tmp_path / "one"), "pruners": [fastv]})
    for id in Sweep(tmp_path / "one").finished["id"]:
        assert Sweep(tmp_path / "one").store[id].data_hash == found.store[id].data_hash


def test_the_table_of_a_running_sweep_can_be_read(sweep, plain, tmp_path, monkeypatch):
    lengths, write = [], tables.write_table

    def note(folder, kind, found):
        lengths.append(len(found))
        return write(folder, kind, found)

    monkeypatch.setattr(tables, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(tables, "write_table", note)
    sweep(plain)
    assert lengths[0] < 12 and lengths == sorted(lengths) and lengths[-1] == 12


def ports_open_to_all() -> set[int]:
    me = psutil.Process()
    return {
        port.laddr.port
        for process in (me, *me.children(recursive=True))
        for port in process.net_connections()
        if port.status == psutil.CONN_LISTEN and port.laddr.ip not in ("127.0.0.1", "::1")
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_local_cluster_listens_to_this_machine_only(workers):
    before = ports_open_to_all()
    with cluster.connect(None, workers) as client:
        assert client.submit(int, "3").result() == 3
        assert ports_open_to_all() <= before


def test_a_worker_may_join_later(sweep, plain, monkeypatch):
    monkeypatch.setattr(running, "run_batch", fake_batches.run_batch)
    here: dict[str, Any] = {"n_workers": 0, "processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    said: list[str] = []
    with LocalCluster(host="127.0.0.1", threads_per_worker=1, **here) as local:
        Timer(2.0, local.scale, [1]).start()
        assert sweep(plain, scheduler=local.scheduler_address, workers=None, report=said.append).finished == 12
    assert cluster.NONE_YET in said


def test_nothing_is_said_of_workers_after_the_sweep():
    said, asked, answer = [], Event(), Event()

    class Client:
        def nthreads(self):
            asked.set()
            answer.wait(10)
            return {}

    with cluster.watched(Client(), said.append):
        [thread] = [thread for thread in threading.enumerate() if thread.name == cluster.WATCH]
        assert asked.wait(10)
    answer.set()
    thread.join(10)
    assert not thread.is_alive() and said == []


def test_a_sweep_says_when_no_worker_is_left_and_when_one_comes(monkeypatch):
    """dask waits for workers without a word; one that is back by the next look is no news."""
    said, looks = queue.Queue[str](), iter([2, 0, 2, 0, 0, 0, 3, 3, 0, 0])

    class Client:
        def nthreads(self):
            return dict.fromkeys(range(next(looks)), 1)  # at the end StopIteration, as from a scheduler that is gone

    with cluster.watched(Client(), said.put, seconds=0.001):
        told = [said.get(timeout=10) for _ in range(3)]
    assert told == [cluster.NONE_LEFT, "workers at the scheduler: 3; going on", cluster.NONE_LEFT]
    assert said.empty() and not list(looks)
