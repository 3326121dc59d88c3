"""Scenes: drawn where they say, in the colour they say, and never two of a kind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionpulse_analysis.testbed.scenes.scene import CELL, COLOURS, SHAPES, Scene, SceneObject, generate

PAPER = 232


@given(seed=st.integers(0, 2**40), cells=st.integers(2, 16))
@settings(max_examples=60, deadline=None)
def test_scenes_are_valid_and_repeatable(seed, cells):
    scene = generate(seed, cells)
    assert scene == generate(seed, cells)
    assert len({o.name for o in scene.objects}) == len(scene.objects) == len({o.place for o in scene.objects})
    assert Scene.from_dict(scene.to_dict()) == scene


def test_seeds_and_sizes_give_other_scenes():
    assert generate(0, 8) != generate(1, 8)
    assert generate(0, 4).objects != generate(0, 6).objects


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_is_drawn_in_its_own_cell_in_its_colour(colour, shape):
    for dx, dy, size in ((0, 0, 1.0), (0.8, -0.8, 1.08), (-0.8, 0.8, 1.08)):
        scene = Scene(4, (SceneObject(colour, shape, 1, 2, dx, dy, size),), seed=3)
        empty = Scene(4, (), seed=3)
        image, background = scene.render(), empty.render()
        changed = (image != background).any(axis=2)
        rows, cols = np.nonzero(changed)
        assert rows.min() >= CELL and rows.max() < 2 * CELL and cols.min() >= 2 * CELL and cols.max() < 3 * CELL
        assert changed.sum() > 40
        centre = image[CELL + CELL // 2, 2 * CELL + CELL // 2].astype(int)
        assert np.abs(centre - COLOURS[colour]).max() <= 1


def test_generated_objects_lie_whole_inside_their_cells():
    """Jitter moves and scales an object a little; one that is cut off would show a flat side on its cell's rim."""
    for seed in range(40):
        scene = generate(seed, 8)
        contrast = np.abs(scene.render().astype(int) - Scene(8, (), scene.seed).render()).max(axis=2)
        for o in scene.objects:
            cell = contrast[o.row * CELL : (o.row + 1) * CELL, o.col * CELL : (o.col + 1) * CELL]
            covered = cell > (PAPER - min(COLOURS[o.colour])) / 2
            assert max(side.sum() for side in (*covered[[0, -1]], *covered.T[[0, -1]])) < CELL / 2, o
            places = np.argwhere(covered)
            middle = (places.min(axis=0) + places.max(axis=0)) / 2
            assert np.abs(middle - (CELL - 1) / 2).max() <= CELL / 6, o


def test_shapes_differ_from_one_another():
    drawn = [
        Scene(2, (SceneObject("black", shape, 0, 0),), 0).render()[:CELL, :CELL, 0].astype(int) for shape in SHAPES
    ]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert (np.abs(a - b) > 60).sum() >= 12


def test_edges_are_anti_aliased():
    circle = Scene(2, (SceneObject("black", "circle", 0, 0),), 0).render()[:CELL, :CELL, 0].astype(int)
    assert ((circle > 60) & (circle < 200)).sum() >= 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(0, 1), "2 to 16"),
        (lambda: generate(0, 17), "2 to 16"),
        (lambda: generate(0, 4, 17), "1 to 16 objects"),
        (lambda: Scene(4, (SceneObject("red", "star", 0, 4),), 0), "outside a 4 x 4 grid"),
        (
            lambda: Scene(4, (SceneObject("red", "star", 0, 0), SceneObject("blue", "star", 0, 0)), 0),
            "share a cell",
        ),
        (
            lambda: Scene(4, (SceneObject("red", "star", 0, 0), SceneObject("red", "star", 0, 1)), 0),
            "look the same",
        ),
        (lambda: Scene(4, (SceneObject("red", "blob", 0, 0),), 0).render(), "unknown shape"),
    ],
)
def test_bad_scenes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
