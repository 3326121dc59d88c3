"""Ctrl-C at any moment: the model is left as it was, the store can be read, and the next decode is right."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import routing as attention

PACKAGE = str(Path(vpa.__file__).parent)
QUESTION = "where is the red circle ?"


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    """What is started in the background ignores Ctrl-C; these tests must not depend on how they are started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def state(vlm) -> tuple:
    """Everything that a decode changes for a while."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    configs = [c._attn_implementation for c in (vlm.model.config.text_config, vlm.model.config.vision_config)]
    registry = len(attention.AttentionInterface._global_mapping)
    handler = signal.getsignal(signal.SIGINT)
    ours = attention.active_interceptors(vlm.model), len(attention._interceptors), attention._library_lookup
    return hooks, configs, registry, handler, ours, attention.AttentionInterface.get_interface


class Presses:
    """A trace function that presses Ctrl-C at the n-th line of the package's code that is run."""

    def __init__(self, at: int):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self


WAYS = {
    "dense": {},
    "pruned": {"pruner": vpa.VisionPulse(budget=0.2)},
    "gathered": {"pruner": vpa.VisionPulse(budget=0.2), "execution": "gathered"},
    "pruned at prefill": {"pruner": vpa.make_pruner("fastv(layer=1, budget=0.5)"), "execution": "gathered"},
    "batched": {"batch_size": 2},  # the third row takes the place of one that has ended
    "batched and gathered": {"batch_size": 2, "pruner": vpa.VisionPulse(budget=0.2), "execution": "gathered"},
}


def asked(vlm, picture, way: str, **options) -> list[vpa.Trace]:
    """One question, or three in two places, decoded in one of the `WAYS`."""
    count = 3 if way.startswith("batched") else 1
    return vpa.decode(
        vlm, [picture] * count, ["where ?", QUESTION, "is it red ?"][-count:], max_new_tokens=3, layers=[2, 5],
        **WAYS[way], **options,
    )  # fmt: skip


def interrupted(vlm, picture, way: str, at: int, **options) -> tuple[bool, int]:
    """Decode with Ctrl-C at line `at`: whether it was interrupted, and how many lines were run."""
    presses = Presses(at)
    sys.settrace(presses)
    try:
        asked(vlm, picture, way, **options)
        return False, presses.lines
    except KeyboardInterrupt:
        return True, presses.lines
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_any_line_leaves_everything_as_it_was(vlm, pictures, tmp_path, way):
    expected = asked(vlm, pictures[0], way)
    whole, cut = ([f"{name}-{row}" for row in range(len(expected))] for name in ("whole", "cut"))
    store = vpa.TraceStore(tmp_path / "store", mode="a")
    before = state(vlm)
    was, lines = interrupted(vlm, pictures[0], way, at=0, store=store, ids=whole)
    assert not was and [store[id].data_hash for id in whole] == [trace.data_hash for trace in expected]

    @settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
    @given(st.integers(1, lines))
    def at_any_line(at):
        was, _ = interrupted(vlm, pictures[0], way, at, store=store, ids=cut, overwrite=True)
        assert was and state(vlm) == before
        assert [store[id].data_hash for id in whole] == [trace.data_hash for trace in expected]
        for id, trace in zip(cut, expected, strict=True):
            if id in store:
                found = store[id]
                assert found.tokens == trace.tokens[: len(found)]
                assert not found.meta["complete"] or found.data_hash == trace.data_hash

    at_any_line()
    assert [trace.data_hash for trace in asked(vlm, pictures[0], way)] == [trace.data_hash for trace in expected]


CHILD = """
import json
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import numpy as np
import visionpulse_analysis as vpa
from test_hostile_interrupts import WAYS, asked, state

vlm, picture = vpa.load(sys.argv[2]), np.full((64, 64, 3), 200, np.uint8)
store = vpa.TraceStore(sys.argv[3], mode="a")
hashes, before = {way: [trace.data_hash for trace in asked(vlm, picture, way)] for way in WAYS}, state(vlm)
for round in range(int(sys.argv[4])):
    try:
        print("decoding", flush=True)
        for count in range(10**6):
            way = list(WAYS)[(round + count) % len(WAYS)]
            asked(vlm, picture, way, store=store, ids=[f"{round}-{count}-{i}" for i in range(len(hashes[way]))])
    except KeyboardInterrupt:
        assert state(vlm) == before, (state(vlm), before)
        print("interrupted", flush=True)
for way in WAYS:
    assert [trace.data_hash for trace in asked(vlm, picture, way)] == hashes[way], way
print(json.dumps(hashes), flush=True)
"""


def test_a_real_process_under_real_interrupts(scenes_folder, tmp_path):
    rounds = 6
    words = [
        sys.executable,
        "-c",
        CHILD,
        str(Path(__file__).parent),
        str(scenes_folder),
        str(tmp_path / "s"),
        str(rounds),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None and child.stderr is not None
        for _ in range(rounds):
            line = child.stdout.readline()
            assert line == "decoding\n", line + child.stderr.read()
            pause = random.uniform(0, 0.4)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(pause)
            os.kill(child.pid, signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n", child.stderr.read()
        expected = list(json.loads(child.stdout.readline()).values())
        assert child.wait() == 0, child.stderr.read()
    store = vpa.TraceStore(tmp_path / "s")
    for id in store.ids:
        trace = store[id]
        round, count, row = map(int, id.split("-"))
        assert trace.meta["complete"] == (id in store.finished_ids) and len(trace) <= 3
        assert not trace.meta["complete"] or trace.data_hash == expected[(round + count) % len(WAYS)][row]
