"""Going on where a sweep stopped: nothing finished is touched, nothing is mixed with what was made before."""

import json
import shutil

import pytest
from fake_batches import made_trace
from folder_contents import content_of, state_of

import visionpulse_analysis.decoding
import visionpulse_analysis.models.loading
from visionpulse_analysis.experiments.sweeps import worker
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.samples import plan
from visionpulse_analysis.experiments.sweeps.tables import State, SweepFolder
from visionpulse_analysis.experiments.sweeps.worker import SweepError
from visionpulse_analysis.traces.store import TraceStore

pytestmark = pytest.mark.usefixtures("one_thread")


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
    said: list[str] = []
    assert sweep(small, report=said.append).planned == 2 and len(Sweep(tmp_path / "out").table) == 2
    assert "10 traces made with other settings stay in the store, and are not in the table" in said


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
    untouched = state_of(tmp_path / "out")
    with pytest.raises(SweepError, match=r"has other weights .* than when this sweep began"):
        sweep({**given, "samples": {"scenes": {"n": 4, "cells": 4}}})
    assert state_of(tmp_path / "out") == untouched


def test_workers_that_load_different_weights_under_one_name_are_found(plain, tmp_path):
    """Until the first batch is back, no worker knows what the others loaded."""
    one, other = plan(SweepConfig.from_plain(plain, folder=tmp_path))[:2]
    folder = SweepFolder(tmp_path / "out")
    state = State(folder, [one, other], retries=0, retry_failed=False)
    message = rf"{other.id} was made with other weights \(b\) than .*\(a\)"
    state.take([{"id": one.id, "row": {"weights": "a"}}])
    with pytest.raises(SweepError, match=message):
        state.take([{"id": other.id, "row": {"weights": "b"}}])
    for job in (one, other):
        folder.store.add(made_trace(job.id, seed=0))
    with pytest.raises(SweepError, match="was made with other weights"):
        State(folder, [one, other], retries=0, retry_failed=False)
