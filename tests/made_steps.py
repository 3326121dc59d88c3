"""Steps of made-up traces, and what a store must give back for them."""

import numpy as np
import xarray as xr

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces.store import TraceStore, TraceWriter

LAYERS = [2, 7]


GRID = PatchGrid.from_grid(range(3, 9), rows=2, cols=3, image_sizes=[(16, 24)])


IMAGE = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)


OPTIONAL = ("kept", "budget", "k", "pruner_mass")


def step(t: int, heads: int | None = None) -> dict:
    """What step t brings; different at every step."""
    random = np.random.default_rng(t)
    rows = (len(LAYERS),) if heads is None else (len(LAYERS), heads)
    attention = random.dirichlet(np.ones(7), rows)[..., :6].astype(np.float16)
    kept = random.random(6) < 0.5
    return {
        **{
            "attention": attention,
            "mass": attention.astype(np.float32).sum(-1),
            "logprob": np.log(random.random()),
        },
        **{"token_id": int(random.integers(2**40)), "token": f" wörd{t} </i>"},
        **{
            "kept": kept,
            "k": kept.sum(),
            "budget": np.nan if t == 0 else 0.1 * t,
            "pruner_mass": random.random(),
        },
    }


def header(**change) -> dict:
    meta = {"question": "where ?", "seed": 1}
    return {
        **{"grid": GRID, "layers": LAYERS, "images": [IMAGE], "prompt_tokens": ["where"], "meta": meta},
        **{"optional": OPTIONAL, **change},
    }


def expected(id: str, steps: int, complete: bool, heads: int | None = None, **meta) -> Trace:
    """The same trace, made in one stroke."""
    rows = [step(t, heads) for t in range(steps)]
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return create_trace(
        **{name: column[name] for name in ("attention", "mass", *OPTIONAL)},
        **{
            "tokens": [row["token"] for row in rows],
            "token_ids": column["token_id"],
            "logprobs": column["logprob"],
        },
        **{"grid": GRID, "layers": LAYERS, "heads": None if heads is None else list(range(heads))},
        **{"images": [IMAGE], "prompt_tokens": ["where"]},
        meta={"question": "where ?", "seed": 1, "id": id, "complete": complete, **meta},
    )


def assert_same(found: Trace, wanted: Trace) -> None:
    a, b = found.dataset.load(), wanted.dataset.load()
    assert dict(a.attrs, meta=None) == dict(b.attrs, meta=None) and a.attrs["meta"] == b.attrs["meta"]
    xr.testing.assert_identical(a, b)
    assert found.data_hash == wanted.data_hash


def stream(store: TraceStore, id: str, steps: int, **change) -> TraceWriter:
    writer = store.writer(id, **header(**change))
    for t in range(steps):
        writer.append(**step(t))
    return writer
