"""`visionpulse bench store`: what it measures is a store that reads like any other."""

import json

import pytest
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.experiments.bench.store import bench_store
from visionpulse_analysis.traces.store import TraceStore


def test_every_trace_of_the_store_can_be_read(tmp_path):
    result = bench_store(203, reads=5, folder=tmp_path / "store")
    assert result["traces"] == 203 and set(result["random_step_ms"]) == {"min", "median", "max"}
    store = TraceStore(tmp_path / "store")
    assert len(store) == 203
    assert len({store[id].data_hash for id in store.ids[:3] + store.ids[-3:]}) == 1
    again = bench_store(203, reads=5, folder=tmp_path / "store")
    assert again["add_ms"] is None, "a store that is there is used as it is"


def test_the_command():
    done = CliRunner().invoke(app, ["bench", "store", "--traces", "3", "--reads", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["traces"] == 3
    assert "random step" in CliRunner().invoke(app, ["bench", "store", "--traces", "3", "--reads", "2"]).stdout
    with pytest.raises(ValueError, match="at least 1"):
        bench_store(0)
