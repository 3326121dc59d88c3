"""Everything that makes a trace, random but fixed."""

import numpy as np
import xarray as xr

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace

STEPS, LAYERS, HEADS = 5, [2, 7], [0, 3, 4]


def arguments(heads: bool = False, pruned: bool = True) -> dict:
    """Everything `create_trace` takes, random but fixed, two images of different sizes."""
    random = np.random.default_rng(0)
    grid = PatchGrid.from_grid([*range(4, 10), *range(20, 28)], [2, 4], [3, 2], [(16, 30), (20, 14)])
    rows = (STEPS, len(LAYERS), len(HEADS)) if heads else (STEPS, len(LAYERS))
    attention = random.dirichlet(np.ones(15), rows)[..., :14]
    result = {
        "attention": attention.astype(np.float16),
        "mass": attention.sum(-1).astype(np.float32),
        "tokens": ["<think>", " red", " </b>é", "</think>", " r0 c2"],
        "token_ids": random.integers(0, 2**40, STEPS),
        "logprobs": np.log(random.random(STEPS)).astype(np.float32),
        "grid": grid,
        "layers": LAYERS,
        "heads": HEADS if heads else None,
        "images": [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in grid.image_size],
        "prompt_tokens": ["<image>", "where", " ?"],
        "meta": {"id": "a", "question": "where <b> ?", "seed": 3, "sample": None, "versions": {"numpy": "2"}},
    }
    if pruned:
        budget = np.array([np.nan, 0.5, 0.25, 0.1, 0.05], np.float32)
        result |= {"kept": random.random((STEPS, 14)) < 0.5, "budget": budget, "pruner_mass": budget / 3}
        result["k"] = result["kept"].sum(1)
    return result


def make(**change) -> Trace:
    return create_trace(**{**arguments(), **change})


def assert_same(a: Trace, b: Trace) -> None:
    xr.testing.assert_identical(a.dataset.load(), b.dataset.load())
    assert {name: v.dtype for name, v in a.dataset.variables.items()} == {
        name: v.dtype for name, v in b.dataset.variables.items()
    }
