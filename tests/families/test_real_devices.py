"""What a CPU gives, on the GPU or Apple chip that is there: `pytest -m gpu`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.exactness.rounding import forced

KIND = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
if KIND is None:
    pytest.skip("neither CUDA nor MPS here", allow_module_level=True)
pytestmark = pytest.mark.gpu
SOME = ["qwen3_vl", "qwen2_5_vl", "llava", "llava_next", "internvl", "gemma3", "idefics3", "glm4v"]
QUESTION, ANSWER = "where is the red circle ?", [40, 41, 42, 43]

some = pytest.mark.parametrize("family", SOME, indirect=True)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def all_digits(monkeypatch):
    """A GPU may leave out digits of float32 in convolutions, as those that cut a picture into patches."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on(vlm, device: str | None, dtype: torch.dtype):
    return replace(vlm, model=deepcopy(vlm.model).to(device, dtype))


@some
@dtypes
def test_the_self_checks_hold(family, dtype):
    report = vpa.check(on(family.vlm, KIND, dtype))
    assert report.passed and f" on {KIND}" in str(report), str(report)


@some
@dtypes
@pytest.mark.parametrize("pruner", [None, vpa.VisionPulse(budget=1.0)], ids=["dense", "pruner that keeps all"])
def test_logits_and_rows_are_those_of_a_cpu(family, photos, dtype, pruner):
    """The same tokens given to both; ten units of rounding of the dtype, of float32 1e-6 each, and of stored rows."""
    allowed = 10 * max(torch.finfo(dtype).eps, 1e-6)
    found = []
    for device in ("cpu", KIND):
        vlm = on(family.vlm, device, dtype)
        prompt = vlm.prompt(photos[1:], QUESTION)
        run = forced(vlm, prompt, ANSWER, layers=range(vlm.n_layers), pruner=pruner)
        found.append((torch.log_softmax(run.logits, dim=1).cpu(), run.rows.cpu()))
    (logits, rows), (logits_there, rows_there) = found
    assert float((logits - logits_there).abs().max()) <= allowed * float(logits.abs().max())
    assert float((rows - rows_there).abs().max()) <= (allowed + 2**-11) * float(rows.max())


@some
@pytest.mark.parametrize("execution", ["masked", "gathered"])
def test_pruned_decodes_are_those_of_a_cpu(family, photos, execution):
    """In float32, three rows in two places; sets may differ where two patches weigh the same to rounding."""
    options = {"max_new_tokens": 5, "batch_size": 2, "pruner": vpa.VisionPulse(budget=0.25), "execution": execution}
    here, there = (
        vpa.decode(on(family.vlm, device, torch.float32), photos, [QUESTION, "how many ?", "is it red ?"], **options)
        for device in ("cpu", KIND)
    )
    for one, other in zip(here, there, strict=True):
        assert one.tokens == other.tokens and np.array_equal(one.k, other.k)
        assert float((one.kept != other.kept).mean()) < 0.02
        assert float(abs(one.mass - other.mass).max()) < 1e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="a model over two devices needs two GPUs")
@some
def test_a_model_over_two_devices(family, photos, tmp_path):
    family.tiny.save(tmp_path)
    layers = {name: 0 for name, _ in family.vlm.model.named_children()}
    parted = vpa.load(str(tmp_path), device_map={**layers, "lm_head": 1})
    assert {str(parameter.device) for parameter in parted.model.parameters()} == {"cuda:0", "cuda:1"}
    alone = vpa.load(str(tmp_path), device="cuda:0")
    for options in ({}, {"pruner": vpa.VisionPulse(budget=0.25), "execution": "gathered"}):
        one, other = (vpa.decode(vlm, photos[1], QUESTION, max_new_tokens=5, **options) for vlm in (alone, parted))
        assert one.tokens == other.tokens and np.array_equal(one.logprobs, other.logprobs)
