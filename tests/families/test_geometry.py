"""Where a patch is: one bright cell reaches one token, through processor, vision tower and prompt."""

import numpy as np
import pytest

from visionpulse_analysis.checking.vision import brighten, changes

QUESTION = "where ?"
SHAPES = {"one": [(64, 64)], "wide": [(33, 150)], "tall": [(140, 37)], "three": [(64, 64), (40, 96), (90, 44)]}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_a_bright_cell_reaches_its_patch_and_no_far_one(family, shapes, rng):
    grey = [np.full((*shape, 3), 60, np.uint8) for shape in shapes]
    before = family.vlm.prompt(grey, QUESTION)
    grid = before.grid
    for image, frame, *_ in grid.frames.tolist():
        here = np.flatnonzero((grid.image == image) & (grid.frame == frame))
        height, width = grid.image_size[image]
        seen = (grid.box[here] >= 0).all(axis=1) & (grid.box[here] <= [width, height, width, height]).all(axis=1)
        assert seen.any()
        for patch in rng.choice(here[seen], size=min(3, seen.sum()), replace=False):
            bright = [brighten(one, grid.box[patch]) if i == image else one for i, one in enumerate(grey)]
            change = changes(family.vlm, before, family.vlm.prompt(bright, QUESTION))
            assert here[change[grid.position[here]].argmax()] == patch
            # The processor's smoothing reaches the neighbours, nothing more; words and breaks see no pixels.
            near = (grid.image == image) & touches(grid, grid.box[patch])
            reached = np.zeros(len(change), bool)
            reached[grid.position[near]] = True
            assert (change[~reached] == 0).all()


def touches(grid, box) -> np.ndarray:
    """Patches within one patch's width and height of a box: bool [patch]."""
    width, height = grid.box[:, 2] - grid.box[:, 0], grid.box[:, 3] - grid.box[:, 1]
    left, top, right, bottom = box
    across = (grid.box[:, 0] < right + width) & (grid.box[:, 2] > left - width)
    return across & (grid.box[:, 1] < bottom + height) & (grid.box[:, 3] > top - height)


def test_every_image_token_is_a_patch_or_a_break(family, photos):
    prompt = family.vlm.prompt(photos, QUESTION)
    image_tokens = np.flatnonzero((prompt.ids == family.vlm.family.image_id).numpy())
    assert set(prompt.grid.position) <= set(image_tokens)
    assert prompt.grid.n_images == 3 and (np.diff(prompt.grid.image) >= 0).all()
