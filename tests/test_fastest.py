"""Of several ways to compute the same, the fastest is taken; timing happens once for a shape."""

from __future__ import annotations

import pytest
import torch

from visionpulse_analysis.attention import autotune as fastest
from visionpulse_analysis.attention.autotune import run_fastest

DEVICE = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the ways spend, and an empty table."""
    now = [0.0]
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(fastest, "measured", {})
    monkeypatch.setattr(fastest, "failed", {})
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


def test_a_way_that_fails_is_named_once_and_not_tried_again(clock, caplog):
    called: list[str] = []

    def broken():
        called.append("fused")
        raise RuntimeError("no such instruction")

    ways = {"plain": way(clock, 1.0, called, "plain"), "fused": broken}
    assert [run_fastest(case, ways, DEVICE) for case in ("small", "small", "large")] == ["plain"] * 3
    assert called.count("fused") == 1
    [record] = caplog.records
    assert "fused" in record.message and "cpu" in record.message and "no such instruction" in record.message
    assert fastest.tried() == {
        "ms": {"small": {"plain": 1000.0}, "large": {"plain": 1000.0}},
        "failed": {"fused on cpu": "no such instruction"},
    }


@pytest.mark.parametrize("short", ["plain", "fused"])
def test_where_memory_is_short_the_other_way_runs_and_nothing_is_settled(clock, caplog, short):
    called: list[str] = []
    enough = [False]

    def tight(name):
        def run():
            if not enough[0]:
                raise torch.OutOfMemoryError("a little more")
            return way(clock, 1.0, called, name)()

        return run

    ways = {name: tight(name) if name == short else way(clock, 2.0, called, name) for name in ("plain", "fused")}
    assert run_fastest("small", ways, DEVICE) != short
    assert not fastest.measured and not fastest.failed and not caplog.records
    enough[0] = True
    assert run_fastest("small", ways, DEVICE) == short, "it is the faster one"
    enough[0] = False
    with pytest.raises(torch.OutOfMemoryError):
        run_fastest("large", {name: tight(name) for name in ways}, DEVICE)


def test_a_device_that_is_lost_is_not_used_on(clock, monkeypatch):
    class Lost(RuntimeError):
        pass

    def lost():
        raise Lost("illegal address")

    monkeypatch.setattr(fastest, "LOST", Lost)
    with pytest.raises(Lost, match="illegal address"):
        run_fastest("small", {"plain": lambda: 1, "fused": lost}, DEVICE)


def test_the_first_way_must_work(clock):
    def broken():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_fastest("small", {"plain": broken, "fused": lambda: 1}, DEVICE)
    assert not fastest.measured
