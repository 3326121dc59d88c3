"""A scene drawn by hand, and traces that speak about it with any attention."""

import numpy as np

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.testbed.scenes.scene import CELL, Scene, SceneObject
from visionpulse_analysis.traces import create_trace

SIDE = 8  # patches per side: a scene of 4 x 4 cells


OBJECTS = (SceneObject("red", "circle", 0, 2), SceneObject("blue", "cross", 2, 3), SceneObject("red", "star", 3, 0))


WORDS = "see red circle r0 c2 , no . see blue cross r2 c3 , yes . </think> r2 c3 <|im_end|>".split()


NAMED = [None, 0, 0, 0, 0, None, 0, None, None, 1, 1, 1, 1, None, 1, *[None] * 5]


def sample_of(name="scene", objects=OBJECTS):
    scene = Scene(4, objects, seed=1)
    return Sample(name, scene.render(), "where is the blue cross ?", scene)


def trace_of(attention, words=WORDS, heads=None):
    """A trace with the given attention [step, layer, (head), patch] on the image of `sample_of`."""
    attention = np.asarray(attention, dtype=np.float32)
    grid = PatchGrid.from_grid(range(SIDE**2), SIDE, SIDE, [(4 * CELL, 4 * CELL)])
    return create_trace(
        attention=attention,
        mass=attention.sum(-1),
        tokens=list(words),
        token_ids=np.arange(len(words)),
        logprobs=np.zeros(len(words)),
        grid=grid,
        layers=[2, 5][: attention.shape[1]],
        heads=heads,
        images=[sample_of().image],
        meta={"question": "where is the blue cross ?", "text": " ".join(words)},
    )


def cell_patches(o):
    """Patch indices of an object's cell, counted by hand: a cell is 2 x 2 patches."""
    return [SIDE * (2 * o.row + i) + 2 * o.col + j for i in (0, 1) for j in (0, 1)]


def random_traces(rng, count=4, layers=2):
    return [
        trace_of(rng.dirichlet(np.full(SIDE**2, 0.3), (len(WORDS), layers)) * rng.uniform(0.1, 0.9, (len(WORDS), 1, 1)))
        for _ in range(count)
    ]
