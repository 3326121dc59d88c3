"""Where the GPU kernels are taken instead of the plain way, and that nothing else changes with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_caches import BATCHES, HEADS, cached, choice
from slow_pruners import Batch

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import gathered as gathering
from visionpulse_analysis.attention.gathered import Readings
from visionpulse_analysis.pruners import VisionPulse


class OtherKernels:
    """Stands for the GPU kernels: another order of sums, so other last digits."""

    @staticmethod
    def attend_listed(query, key, value, columns, hidden, scaling):
        index = columns[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        grouped = query.view(len(query), key.shape[1], -1, query.shape[3]).double()
        logits = grouped @ key.gather(2, index).double().transpose(2, 3) * scaling
        if hidden is not None:
            logits.masked_fill_(hidden[:, None, None], -torch.inf)
        output = torch.softmax(logits, dim=3) @ value.gather(2, index).double()
        return output.to(value.dtype).view(len(query), 1, query.shape[1], -1)


@pytest.fixture
def other_kernels(monkeypatch):
    """As on a GPU where the kernels are the faster: the cases that were asked for."""
    cases: list[str] = []
    monkeypatch.setattr(gathering, "fused_kernels", lambda device: OtherKernels)
    monkeypatch.setattr(gathering, "run_fastest", lambda case, ways, device: cases.append(case) or ways["fused"]())
    return cases


def test_recording_changes_nothing_where_the_kernels_are_taken(vlm, pictures, monkeypatch, other_kernels):
    questions = ["where is the red circle ?", "how many blue shapes ?", "what ?"]
    options = {"max_new_tokens": 6, "batch_size": 3, "pruner": VisionPulse(budget=0.1), "execution": "gathered"}
    recorded, plain = (vpa.decode(vlm, pictures, questions, layers=layers, **options) for layers in ("all", "none"))
    assert len(other_kernels) == 2 * 5 * (vlm.n_layers - vlm.default_anchor), "every step, from the anchor on"
    monkeypatch.undo()
    expected = vpa.decode(vlm, pictures, questions, layers="all", **options)
    for a, b, c in zip(recorded, plain, expected, strict=True):
        assert a.tokens == b.tokens == c.tokens
        assert np.array_equal(a.logprobs, b.logprobs) and np.abs(a.logprobs - c.logprobs).max() < 1e-5
        assert np.abs(a.attention.values - c.attention.values).max() < 1e-4


def test_cases_are_told_apart_by_what_decides_which_way_is_faster(rng, other_kernels):
    def asked(patches, rows, known=False, heads=HEADS):
        batch = Batch([np.arange(2, 2 + patches)] * rows, [patches + 4] * rows)
        query, key, value = cached(batch, 0, torch.Generator().manual_seed(0))
        kept = batch.layout().patches.clone()
        kept[:, 0] = False
        read = Readings(batch.layout(), "gathered").of(kept, None, key.shape[2])
        read.attend(query[:, :heads], key, value, 1.0, torch.zeros(rows, heads, key.shape[2]) if known else None)
        return other_kernels[-1]

    assert asked(20, 3) == asked(25, 4) == asked(25, 3), "rows leave and columns come at many steps"
    assert "up to 32 columns and 4 rows, 6 heads of 8, 2 of keys, torch.float32 on cpu" in asked(20, 3)
    others = [asked(20, 3), asked(40, 3), asked(20, 5), asked(20, 3, known=True), asked(20, 3, heads=4)]
    assert len(set(others)) == 5


def test_values_of_another_width_are_not_for_the_kernels(rng, other_kernels):
    batch = BATCHES["alike"](rng)
    query, key, value = cached(batch, 0, torch.Generator().manual_seed(0))
    read = Readings(batch.layout(), "gathered").of(choice(batch, rng), None, key.shape[2])
    output, _ = read.attend(query, key, value[..., :5], 1.0)
    assert not other_kernels and output.shape == (2, 1, HEADS, 5)


@pytest.mark.parametrize(
    "device, triton, said, there",
    [("cuda", True, None, True), ("cuda", True, "0", False), ("cuda", False, None, False), ("cpu", True, None, False)],
)
def test_the_kernels_are_for_gpus_and_can_be_left_out(device, triton, said, there, monkeypatch):
    monkeypatch.setattr(gathering, "_has_triton", lambda: triton)
    monkeypatch.setattr(gathering, "import_module", lambda name: name)
    monkeypatch.delenv("VISIONPULSE_KERNELS", raising=False)
    if said is not None:
        monkeypatch.setenv("VISIONPULSE_KERNELS", said)
    found = gathering.fused_kernels(device)
    assert found == ("visionpulse_analysis.attention.triton_kernels" if there else None)
