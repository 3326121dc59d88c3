"""Made-up traces with known attention: a bright spot that walks over the patches, a sink, noise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace
from visionpulse_analysis.traces.quantities import Quantity

SENTENCE = "look for the red circle . see blue cross r2 c5 , no . see red circle r0 c2 , yes .".split()
AWKWARD = ["<script>alert(1)</script>", '"quoted"', "it's", "&amp;", "</script>", "a\nb", ""]
AWKWARD += ["\N{RIGHT-TO-LEFT OVERRIDE}12", "مرحبا", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}", "\x1b[31m", "x" * 300]
SINK = 5


def make_trace(
    *,
    steps: int = 40,
    rows: int = 8,
    cols: int = 8,
    layers: tuple[int, ...] = (2, 3, 5),
    heads: tuple[int, ...] | None = None,
    images: int = 1,
    pixels: int = 8,
    grid: PatchGrid | None = None,
    pictures: list[np.ndarray] | None = None,
    budget: float | None = None,
    anchor: int | None = None,
    tokens: list[str] | None = None,
    seed: int = 0,
    recorded: Mapping[Quantity, np.ndarray] = MappingProxyType({}),
) -> Trace:
    """A trace of `steps` tokens over `images` grids of `rows` x `cols` patches, `pixels` wide each, or over `grid`.

    With `anchor` a pruned trace also knows how many patches are visible at each layer: all before that layer, twice as
    many as at last in it.
    """
    rng = np.random.default_rng(seed)
    if grid is None:
        sizes = [(rows * pixels, cols * pixels)] * images
        grid = PatchGrid.from_grid(range(4, 4 + images * rows * cols), rows, cols, sizes)
    if pictures is None:
        pictures = [picture(*size, seed=n) for n, size in enumerate(grid.image_size.tolist())]
    patches = len(grid)
    axes = (steps, len(layers), patches) if heads is None else (steps, len(layers), len(heads), patches)
    attention = rng.lognormal(0, 1.2, axes)
    spot = (3 * np.arange(steps)) % patches
    attention[np.arange(steps), ..., spot] *= 40
    attention[..., SINK] += 25 * attention.mean()
    mass = (0.15 + 0.5 * rng.random(axes[:-1])) * (1 + 0.4 * np.sin(np.arange(steps) / 5)).reshape(
        -1, *[1] * (len(axes) - 2)
    )
    attention *= (mass / attention.sum(-1))[..., None]
    kept = None
    if budget is not None:
        keep = max(1, round(budget * patches))
        order = np.argsort(-attention.reshape(steps, -1, patches).mean(1), axis=1)
        kept = np.zeros((steps, patches), bool)
        np.put_along_axis(kept, order[:, :keep], True, axis=1)
        kept[0] = True
        attention *= kept.reshape(steps, *[1] * (len(axes) - 2), patches)
        mass = attention.sum(-1)
    if tokens is None:
        body = ["<think>", *(SENTENCE * (steps // len(SENTENCE) + 1))]
        tokens = [*body[: steps - 4], "</think>", "r0", "c2", "<|end|>"]
    vocabulary: dict[str, int] = {}
    ids = [vocabulary.setdefault(token, _identity(token)) for token in tokens]
    return create_trace(
        attention=attention,
        mass=mass,
        tokens=tokens,
        token_ids=ids,
        logprobs=-rng.exponential(0.2, steps),
        grid=grid,
        layers=layers,
        heads=heads,
        kept=kept,
        budget=None if budget is None else np.where(np.arange(steps) == 0, np.nan, budget),
        k=None if kept is None else kept.sum(1),
        k_per_layer=None if kept is None or anchor is None else _visible_counts(kept, anchor, max(layers) + 1),
        images=pictures,
        recorded=recorded,
        prompt_tokens=["<image>", "where", "is", "the", "red", "circle", "?"],
        meta={
            "id": "dense-0" if budget is None else "pruned-0",
            "question": "where is the red circle ?",
            "model": "synthetic",
            "pruner": None if budget is None else {"name": "visionpulse", "budget": budget},
            "text": " ".join(tokens),
        },
    )


def make_pair(steps: int = 40, **options) -> tuple[Trace, Trace]:
    """Dense and pruned: equal for 20 tokens, then two replaced by one and, later, three more put in."""
    dense = make_trace(steps=steps, **options)
    words = [*dense.tokens[:20], "hmm", *dense.tokens[22:26], "wait", "a", "moment", *dense.tokens[26:]]
    return dense, make_trace(steps=len(words), tokens=words, seed=1, budget=0.1, **options)


def make_video(frames: int = 3, **options) -> Trace:
    """One video: `frames` frames of 4 x 6 patches, 8 pixels wide each, and a picture of each frame."""
    cell = np.tile(np.arange(24), frames)
    row, col = cell // 6, cell % 6
    grid = PatchGrid(
        position=np.arange(4, 4 + len(cell)),
        image=np.zeros_like(cell),
        frame=np.repeat(np.arange(frames), 24),
        row=row,
        col=col,
        box=8 * np.stack([col, row, col + 1, row + 1], axis=1),
        image_size=np.array([[32, 48]]),
        frames=[[0, frame, 4, 6] for frame in range(frames)],
        pictures=[[frame, frame + 1] for frame in range(frames)],
    )
    return make_trace(grid=grid, pictures=[picture(32, 48, seed=n) for n in range(frames)], **options)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coloured shapes on a plain ground, uint8 [row_px, col_px, 3]."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 226, np.uint8)
    y, x = np.mgrid[:height, :width]
    for colour in ([196, 56, 48], [52, 98, 184], [64, 148, 84], [222, 170, 48], [196, 56, 48]):
        cy, cx, radius = rng.random() * height, rng.random() * width, min(height, width) / 10
        near = np.abs(y - cy) + np.abs(x - cx) if rng.random() < 0.4 else np.hypot(y - cy, x - cx)
        image[near < radius] = colour
    return image


def _visible_counts(kept: np.ndarray, anchor: int, layers: int) -> np.ndarray:
    """int [step, model_layer]"""
    last = kept.sum(1)[:, None]
    layer = np.arange(layers)
    return np.where(layer < anchor, kept.shape[1], np.where(layer == anchor, np.minimum(2 * last, kept.shape[1]), last))


def _identity(token: str) -> int:
    return int.from_bytes(token.encode()[:6], "big")
