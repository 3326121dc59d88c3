"""The formula of costs.py against a traced count of real forwards, in every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.metrics.flops import ModelShape, count_costs
from visionpulse_analysis.pruners import VTW


def summed(lines: tuple[int, int], bags: tuple[int], *rest, **more) -> int:
    """What it takes to add up vectors of so many numbers, each times its weight; the counter does not know it."""
    return 2 * bags[0] * lines[1]


SUMMED = {torch.ops.aten.embedding_bag: summed, torch.ops.aten._embedding_bag_forward_only: summed}


@pytest.fixture
def counted(monkeypatch):
    """FLOPs of the language model and its head in every forward that decoding makes, in order."""
    counts: list[int] = []

    def forward(self, *args, original=Batch.forward, **inputs):
        # Made of plain matrix products, which the counter knows on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=SUMMED) as counter:
            out = original(self, *args, **inputs)
        per_module = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        model = self.vlm.model
        decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
        counts.append(per_module[decoder] + per_module["lm_head"])
        return out

    monkeypatch.setattr(Batch, "forward", forward)
    return counts


def over_every_key(trace) -> np.ndarray:
    """FLOPs [step] without the saving of sliding windows: here they are masks over a cache that keeps every key.

    What they are with it, as in the library's own cache, is held by tests/test_costs.py.
    """
    facts = dict(trace.meta["costs"])
    shape = ModelShape(**{**facts.pop("shape"), "windows": ()})
    dense = np.full((len(trace), shape.layers), len(trace.grid))
    counts = dense if trace.k_per_layer is None else trace.k_per_layer.values
    return count_costs(shape, counts, patches=len(trace.grid), positions=trace.grid.position, **facts).flops


@pytest.mark.parametrize("pruner", [None, VTW(2)], ids=repr)
def test_flops_are_those_of_a_traced_run(family, photos, counted, pruner):
    """Masked prefill computes dropped patches, so the prefill of a pruned run is left to tests/test_costs.py.

    Its first step is left out as well: there, each layer is tried once against the model's own eager attention.
    """
    options = {"max_new_tokens": 5, "layers": "none", "execution": "gathered"}
    if family.name.endswith("_moe"):
        family.vlm.model.set_experts_implementation("eager")  # the counter does not know grouped products
    for photo in photos[:2]:
        counted.clear()
        trace = vpa.decode(family.vlm, photo, "what is on the left?", pruner=pruner, **options)
        flops = over_every_key(trace)
        first = 0 if pruner is None else 2
        assert np.array(counted)[first:] == pytest.approx(flops[first:], rel=0.01)
