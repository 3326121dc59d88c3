"""Of several ways to compute the same, the fastest is taken; timing happens once for a shape."""

from __future__ import annotations

import pytest
import torch

from visionpulse_analysis.attending import fastest
from visionpulse_analysis.attending.fastest import run_fastest

DEVICE = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the ways spend, and an empty table."""
    now = [0.0]
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(fastest, "measured", {})
    return now


def way(clock, seconds, called, name):
    def run():
        clock[0] += seconds
        called.append(name)
        return name

    return run


@pytest.mark.parametrize("plain, fused, taken", [(2.0, 1.0, "fused"), (1.0, 2.0, "plain"), (1.0, 1.0, "plain")])
def test_the_faster_way_runs(clock, plain, fused, taken):
    called: list[str] = []
    ways = {"plain": way(clock, plain, called, "plain"), "fused": way(clock, fused, called, "fused")}
    assert run_fastest("small", ways, DEVICE) == taken
    tried = len(called)
    assert run_fastest("small", ways, DEVICE) == taken
    assert called[tried:] == [taken], "known now"
    assert fastest.measured == {"small": {"plain": plain, "fused": fused}}
    run_fastest("large", ways, DEVICE)
    assert len(called) > tried + 2, "another shape is another case"


def test_a_way_that_fails_is_named_once_and_not_used(clock, caplog):
    called: list[str] = []

    def broken():
        called.append("fused")
        raise RuntimeError("no such instruction")

    ways = {"plain": way(clock, 1.0, called, "plain"), "fused": broken}
    assert [run_fastest("small", ways, DEVICE) for _ in range(3)] == ["plain"] * 3
    assert called.count("fused") == 1
    [record] = caplog.records
    assert "fused" in record.message and "small" in record.message and "no such instruction" in record.message


def test_the_first_way_must_work(clock):
    def broken():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_fastest("small", {"plain": broken, "fused": lambda: 1}, DEVICE)
    assert not fastest.measured
