"""Where a patch is: one bright cell reaches one token, through processor, vision tower and prompt."""

import numpy as np
import pytest

from visionpulse_analysis.checking.vision import brighten, changes

QUESTION = "where ?"
SHAPES = {
    "one": [(64, 64)],
    "large": [(150, 150)],
    "wide": [(33, 150)],
    "tall": [(140, 37)],
    "three": [(64, 64), (40, 96), (90, 44)],
}


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


def test_rows_go_down_and_columns_right(family, photos):
    grid = family.vlm.prompt(photos, QUESTION).grid
    for image, frame, *_ in grid.frames.tolist():
        left, top = (grid.to_map(grid.box[:, side], image, frame) for side in (0, 1))
        assert (np.diff(left, axis=1) > 0).all() and (np.diff(top, axis=0) > 0).all()
        assert (np.ptp(left, axis=0) < 1e-3).all() and (np.ptp(top, axis=1) < 1e-3).all()


@pytest.mark.parametrize("family", ["llava_siglip", "llava_onevision"], indirect=True)
def test_pixels_that_no_patch_reads_lie_in_no_box(family):
    """A tower of 34 pixels has 8 patches of 4: two pixels at the right and at the bottom go unread."""
    grid = family.vlm.prompt(np.zeros((34, 34, 3), np.uint8), QUESTION).grid
    for image, frame, *_ in grid.frames.tolist():
        here = (grid.image == image) & (grid.frame == frame)
        corners = np.stack([4 * grid.col, 4 * grid.row, 4 * grid.col + 4, 4 * grid.row + 4], axis=1)[here]
        assert grid.box[here].max() == 32 and np.abs(grid.box[here] - corners).max() < 1e-4


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
