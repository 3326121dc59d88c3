"""Files of the authors' format and traces of our own, for the tests of exchange."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace

PICTURE = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def authors_fields(steps: int = 6, all_layers: bool = True, **metadata) -> dict[str, np.ndarray]:
    """What the authors' collector saves: float32 rows that float16 cannot hold."""
    random = np.random.default_rng(steps)
    layers = np.arange(5) if all_layers else np.array([2])
    about = {"format_version": 1, "sample_id": "vent", "question": "where ?", "model": "m", "layer": 2, "seed": 42}
    about |= {"layers": layers.tolist(), "generation": {"max_new_tokens": 256, "do_sample": False}, "nan": float("nan")}
    fields = {
        "visual_scores": random.dirichlet(np.ones(13), steps)[:, :12].astype(np.float32),
        "token_ids": random.integers(0, 150_000, steps),
        "token_texts": np.asarray([f" tö{t}" for t in range(steps)]),
        "grid_hw": np.array([3, 4]),
        "layer_indices": layers,
        "metadata": np.asarray(json.dumps({**about, "stopped_on_eos": True, **metadata})),
    }
    if all_layers:
        fields["similarity_by_step"] = random.random((steps, 5, 5)).astype(np.float32)
    return fields


def save(folder: Path, fields: dict[str, Any], picture: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "trace.npz", **fields)
    if picture:
        Image.fromarray(PICTURE).save(folder / "image.png")
    return folder / "trace.npz"


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


def own(heads: bool = False, pruned: bool = True, tokens: list[str] | None = None, images: int = 1) -> Trace:
    """A trace of this package, with everything a trace may have."""
    random = np.random.default_rng(3)
    texts = ["<think> ", "=1+1", 'a "b", c\n', "\r", "NA"] if tokens is None else tokens
    shape = (len(texts), 2, 3) if heads else (len(texts), 2)
    attention = random.dirichlet(np.ones(13 * images), shape)[..., : 12 * images].astype(np.float16)
    steps = len(texts)
    chosen = {"kept": random.random((steps, 12 * images)) < 0.4, "pruner_mass": random.random(steps)}
    chosen |= {"budget": [np.nan, *[0.1] * (steps - 1)], "k": [-1, *[5] * (steps - 1)]}
    return create_trace(
        **{"attention": attention, "mass": attention.astype(np.float32).sum(-1), "layers": [2, 7]},
        **{"tokens": texts, "token_ids": random.integers(0, 999, steps), "logprobs": -random.random(steps)},
        **(chosen if pruned else {}),
        heads=[0, 2, 5] if heads else None,
        grid=PatchGrid.from_grid(range(5, 5 + 12 * images), 3, 4, [(30, 40)] * images),
        images=[PICTURE] * images,
        prompt_tokens=["<|im_start|>", "where"],
        meta={"id": "own", "question": "wo ist </script> ?", "seed": 3, "pruner": {"name": "visionpulse"}},
    )


def assert_same(found: Trace, wanted: Trace) -> None:
    xr.testing.assert_identical(found.dataset.load(), wanted.dataset.load())
    assert found.data_hash == wanted.data_hash and found.meta == wanted.meta
