"""A decode step on a GPU never makes the host wait: shown on a device that refuses whatever would."""

from __future__ import annotations

import copy
from typing import Any

import fake_devices
import pytest
import torch
import transformers
from fake_devices import FAKE, FakeDevices, move, no_waiting
from tiny_models import build
from torch.nn.attention import SDPBackend, sdpa_kernel

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import StepAttention
from visionpulse_analysis.decoding import Batch, run, sampling, transfer
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.pruners import top_k as choosing

QUESTIONS = ["where is the red circle ?", "how many ?", "is it left of the square ?"]
ARMS = [
    {},
    {"sample": Sample(temperature=1.5, top_p=0.9), "heads": [1, 0]},
    {"pruner": "visionpulse"},
    {"pruner": "visionpulse", "execution": "gathered", "sample": Sample()},
    {"pruner": "visionpulse(reuse_previous=True, hysteresis=0.5)", "execution": "gathered"},
    {"pruner": "visionpulse(granularity='block', block_size=4)"},
    {"pruner": "visionpulse(granularity='block', block_size=4, budget=0.2)", "execution": "gathered"},
    *({"pruner": f"{name}(budget=0.2)"} for name in ("random", "uniform", "prefill_once", "last_step_only")),
]


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def model(request, tmp_path_factory):
    """A tiny model here, and on a fake device."""
    if transformers.__version__.startswith("5.4."):
        pytest.skip("this transformers asks torch for the autocast of devices that are not there")
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param).save(folder)
    here = vpa.load(str(folder))
    elsewhere = copy.deepcopy(here)
    move(elsewhere.model, f"{FAKE}:0")
    return here, elsewhere


@pytest.fixture
def steady(monkeypatch):
    """How many groups of rows every watched step had: all but the first ones of a batch whose rows are new."""
    seen: list[int] = []
    watching = [False]

    def step(self, original=Batch.step):
        watching[0] = isinstance(self.attention, StepAttention)
        if watching[0]:
            seen.append(len(self.groups))
        with no_waiting(watching[0]):
            return original(self)

    def choose(self, batch, logits, original=run.Run._choose):
        with no_waiting(watching[0] and isinstance(batch.attention, StepAttention)):
            original(self, batch, logits)

    monkeypatch.setattr(Batch, "step", step)
    monkeypatch.setattr(run.Run, "_choose", choose)
    return seen


@pytest.fixture
def one_ends_early(monkeypatch):
    """The first row of a run ends after three tokens, the others at the limit."""
    ended: list[Any] = []

    def add(self, record, row, values, choice, original=run.Run._add):
        original(self, record, row, values, choice)
        if row == 0 and not ended and len(record.steps) == 3:
            ended.append(record)
            record.finished = True
            record.end()

    monkeypatch.setattr(run.Run, "_add", add)
    monkeypatch.setattr(run, "end_ids", lambda vlm: set())
    return ended


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Two ways lead past: results that are copied while the device goes on, and numbers of the host sent after them."""

    def allowed(function):
        def call(*given):
            with no_waiting(False):
                return function(*given)

        return call

    monkeypatch.setattr(fake_devices, "FLOAT64", True)
    monkeypatch.setattr(transfer, "_on_its_way", allowed(transfer._on_its_way))
    for module in (sampling, choosing):
        monkeypatch.setattr(module, "sent", allowed(choosing.sent))
    monkeypatch.setitem(run.LAG, FAKE, 1)


@pytest.mark.parametrize("options", ARMS, ids=str)
def test_no_step_waits_for_the_device(model, photos, options, steady, one_ends_early):
    """Five questions in three places: a row ends, another joins, and two groups stand side by side."""
    options = dict(options)
    if "pruner" in options:
        options["pruner"] = vpa.make_pruner(options["pruner"])
    asked = [*photos, photos[0], photos[2]], [*QUESTIONS, *QUESTIONS[:2]]
    here, elsewhere = model
    with sdpa_kernel(SDPBackend.MATH):
        expected = vpa.decode(here, *asked, max_new_tokens=9, batch_size=3, **options)
        steady.clear()
        one_ends_early.clear()
        with FakeDevices():
            found = vpa.decode(elsewhere, *asked, max_new_tokens=9, batch_size=3, **options)
    assert len(steady) > 3 and (options.get("pruner") is None or max(steady) > 1)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens and abs(one.logprobs - other.logprobs).max() < 1e-5


@pytest.mark.parametrize(
    "asks",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: there.tolist(),
        lambda there: there.cpu(),
        lambda there: there[there > 0],
        lambda there: there[[0, 1]],
        lambda there: there.nonzero(),
        lambda there: there + torch.tensor([1.0, 2.0], device=there.device),
        lambda there: there.equal(there),
    ],
)
def test_the_device_refuses_what_would_wait(asks):
    with FakeDevices():
        there = torch.ones(2, device=f"{FAKE}:0")
        with no_waiting(), pytest.raises(RuntimeError, match="waits for the device"):
            asks(there)
        with no_waiting():
            _ = there.softmax(0) * 2 + torch.arange(2, device=there.device)
        asks(there)
