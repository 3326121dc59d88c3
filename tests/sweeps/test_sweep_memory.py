"""`visionpulse bench sweep`: the memory it reports is what the workers said, batch by batch."""

from __future__ import annotations

import json
from types import SimpleNamespace

import dask.config
import pytest
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.experiments.bench import endurance as memory
from visionpulse_analysis.experiments.sweeps.cluster import connect


@pytest.fixture
def pretend(monkeypatch):
    """Instead of sweeping, write a log in which trace ``n`` was finished with ``megabytes(n)`` of memory."""

    def go(megabytes, failed=0):
        def run(config, **options):
            lines = [f"time INFO trace-{n}: 7 tokens (node, process 12, {megabytes(n):.0f} MB)" for n in range(200)]
            config.out.mkdir(parents=True)
            (config.out / "sweep.log").write_text("time INFO loaded scenes in process 12\n" + "\n".join(lines) + "\n")
            return SimpleNamespace(folder=str(config.out), planned=200 + failed, failed=failed, seconds=20.0)

        monkeypatch.setattr(memory, "run", run)

    return go


def test_dask_remembers_few_messages():
    before = dask.config.get("distributed.admin.low-level-log-length")
    with connect(None, 0) as client:
        [one] = client.cluster.workers.values()
        assert one.state.stimulus_log.maxlen == one.state.log.maxlen == 20
        assert dask.config.get("distributed.admin.low-level-log-length") == before, "the user's setting is the user's"


def test_growth_is_that_of_the_second_half(pretend):
    pretend(lambda n: 500 + min(n, 100))
    result = memory.bench_sweep(200)
    assert result["growth_mb_per_1000"] == pytest.approx(0, abs=1e-6)
    assert result["memory_mb"] == {"at first": 510, "25 %": 549, "50 %": 599, "75 %": 600, "100 %": 600}
    assert result["samples_per_second"] == 10
    pretend(lambda n: 500 + n)
    assert memory.bench_sweep(200)["growth_mb_per_1000"] == pytest.approx(1000)


def test_a_failed_sample_is_not_measured_away(pretend):
    pretend(lambda n: 500, failed=1)
    with pytest.raises(RuntimeError, match="1 of 201 samples failed"):
        memory.bench_sweep(200)
    with pytest.raises(ValueError, match="at least 4, got 3"):
        memory.bench_sweep(3)


def test_a_real_sweep_says_its_memory_for_every_sample(scenes_folder):
    result = memory.bench_sweep(8, model=str(scenes_folder), workers=0, report=lambda line: None)
    assert result["samples"] == 8 and result["visual_tokens"] == 64
    assert all(100 < value < 100_000 for value in result["memory_mb"].values())
    assert "growth over the second half" in memory.format_sweep(result)


def test_the_command_keeps_the_result(pretend, tmp_path):
    pretend(lambda n: 500)
    done = CliRunner().invoke(app, ["bench", "sweep", "--samples", "200", "--save", str(tmp_path / "s.json"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "s.json").read_text())
