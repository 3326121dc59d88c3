"""GPU kernels of gathered attention: compared with the plain way, on a GPU or, without one, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_pruners import random_batch

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import gathered as gathering
from visionpulse_analysis.attention.cache import GrowingLayer
from visionpulse_analysis.attention.gathered import TextColumns
from visionpulse_analysis.pruners import VisionPulse

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
if find_spec("triton") is None or (DEVICE == "cpu" and not INTERPRETED):
    pytest.skip("the kernels need Triton, and a GPU or its interpreter: make test-triton", allow_module_level=True)

from visionpulse_analysis.attention import triton_kernels as fused  # noqa: E402

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]  # the interpreter lacks it
SHAPES = {"shared keys": (8, 2, 32), "one head a key": (4, 4, 16), "seven to one, odd width": (7, 1, 40)}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


@pytest.fixture(params=[1, 3], ids=["alone", "padded"])
def batch(request, rng):
    return random_batch(rng, request.param)


def drawn(batch, shape, dtype, rng, steps=5):
    """A grown cache, its newest query, and what is read of it; the lot on the device."""
    (heads, kv_heads, dim), rows, layer = shape, len(batch.places), GrowingLayer()
    generator = torch.Generator().manual_seed(0)

    def states(count, length):
        return torch.randn(rows, count, length, dim, generator=generator).to(DEVICE, dtype)

    for length in (batch.width, *[1] * steps):
        layer.update(states(kv_heads, length), states(kv_heads, length))
    layout = batch.layout().on(torch.device(DEVICE))
    kept = torch.from_numpy(rng.random(layout.patches.shape) < 0.4).to(DEVICE) & layout.patches
    columns = batch.width + steps
    mask = (torch.arange(columns, device=DEVICE)[None] >= layout.starts[:, None])[:, None, None]
    text, widest = TextColumns.of(layout), int(kept.sum(dim=1).max())
    gathered = text.gather(kept, widest, -1, mask if layout.starts.any() else None, columns)
    return states(heads, 1), layer.keys, layer.values, gathered


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("multiprocessors", [1, 100], ids=["whole", "in parts"])
def test_the_kernels_give_what_the_plain_way_gives(batch, shape, dtype, multiprocessors, rng, monkeypatch):
    monkeypatch.setattr(fused, "_multiprocessors", lambda device: multiprocessors)
    monkeypatch.setattr(fused, "BLOCK", 16)  # several blocks in these short contexts
    query, key, value, gathered = drawn(batch, shape, dtype, rng)
    scaling = shape[2] ** -0.5
    hidden = None if gathered.hidden is None else gathered.hidden[:, 0, 0]
    found = fused.attend_listed(query, key, value, gathered.columns, hidden, scaling)
    expected, _ = gathered.attend(query.double(), key.double(), value.double(), scaling)
    assert found.dtype == dtype and found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 4 * torch.finfo(dtype).eps * float(value.abs().max())


def test_heads_may_lie_far_apart(rng):
    """Further than 32 bits count: memory that nobody writes to is not taken."""
    query = torch.randn(1, 5, 1, 16).to(DEVICE, torch.float16)
    apart = (1 << 29) + 16
    states = torch.empty(4 * apart + 64 * 16, dtype=torch.float16, device=DEVICE).as_strided(
        (1, 5, 64, 16), (5 * apart, apart, 16, 1)
    )
    states.copy_(torch.randn(states.shape))
    columns = torch.arange(64, device=DEVICE)[None]
    found = fused.attend_listed(query, states, states, columns, None, 0.25)
    near = states.contiguous()
    assert torch.equal(found, fused.attend_listed(query, near, near, columns, None, 0.25))


def test_parts_cover_all_columns_once():
    for programs in (1, 8, 64, 1000):
        for read in (1, 63, 64, 65, 1700, 40_000):
            parts, each = fused._parts(programs, read, 132)
            assert (parts - 1) * each < read <= parts * each
            assert parts <= fused.PARTS and each % fused.BLOCK == 0
    assert fused._parts(8, 40_000, 132)[0] * 8 >= 132, "few rows still use the whole GPU"


@pytest.mark.parametrize("wrong", ["width", "layout"])
def test_what_the_kernels_cannot_read_is_refused(batch, rng, wrong):
    query, key, value, gathered = drawn(batch, (4, 2, 16), torch.float32, rng)
    value = value[..., :8] if wrong == "width" else value.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="one shape"):
        fused.attend_listed(query, key, value, gathered.columns, None, 1.0)


def test_decoding_by_the_kernels_gives_the_same_traces(vlm, pictures, monkeypatch):
    questions = ["where is the red circle ?", "how many blue shapes ?", "what ?"]
    options = {"max_new_tokens": 6, "batch_size": 3, "pruner": VisionPulse(budget=0.1), "layers": "none"}
    expected = vpa.decode(vlm, pictures, questions, execution="gathered", **options)
    cases = []
    monkeypatch.setattr(gathering, "fused_kernels", lambda device: fused)
    monkeypatch.setattr(gathering, "run_fastest", lambda case, ways, device: cases.append(case) or ways["fused"]())
    found = vpa.decode(vlm, pictures, questions, execution="gathered", **options)
    assert len(cases) == 5 * (vlm.n_layers - vlm.default_anchor), "every step, from the anchor on"
    for a, b in zip(expected, found, strict=True):
        assert a.tokens == b.tokens and np.array_equal(a.kept.values, b.kept.values)
        assert np.abs(a.logprobs - b.logprobs).max() < 1e-5


NOT_SPECIALISED = """
from visionpulse_analysis.attention import triton_kernels as fused
for kernel in (fused._attend_part, fused._join_parts):
    print(*(parameter.name for parameter in kernel.params if parameter.do_not_specialize))
"""


def compiling():
    """The environment of a process in which Triton compiles, on a machine without a GPU too."""
    return {**os.environ, "TRITON_INTERPRET": "0"}


def test_what_changes_at_every_step_compiles_nothing_anew():
    changing = {"read", "per_part", "parts"}
    done = subprocess.run(
        [sys.executable, "-c", NOT_SPECIALISED], env=compiling(), capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == changing


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """To machine code of an A100 and an H200 that fits into their shared memory."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        env={**compiling(), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = [tuple(map(int, line.split()[-3:])) for line in done.stdout.splitlines()]
    assert len(made) == 20 and all(size > 1000 and shared <= most for size, shared, most in made)
