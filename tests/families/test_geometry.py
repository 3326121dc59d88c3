"""Where a patch is: one bright cell reaches one token, through processor, vision tower and prompt."""

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.exactness.vision import brighten, changes

QUESTION = "where ?"
STILL, SEVERAL = pytest.mark.shows("still"), pytest.mark.shows("several images")
SHAPES = [
    pytest.param([(64, 64)], id="one", marks=STILL),
    pytest.param([(150, 150)], id="large", marks=STILL),
    pytest.param([(33, 150)], id="wide", marks=STILL),
    pytest.param([(140, 37)], id="tall", marks=STILL),
    pytest.param([(64, 64), (40, 96), (90, 44)], id="three", marks=SEVERAL),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_bright_cell_reaches_its_patch_and_no_far_one(family, shapes, rng):
    bright_cells_reach_their_patches(family, shapes, rng)


def bright_cells_reach_their_patches(family, shapes, rng):
    """Each frame of each picture, a few cells of each."""
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


# Stills of three rows could be taken for three colours, of one for grey, of four for colours with transparency.
NARROW = [(3, 90), (90, 3), (1, 40), (40, 1), (4, 90), (3, 3), (1, 1), (1, 200), (200, 1), (2, 500), (1000, 3)]


@pytest.mark.parametrize("shape", NARROW, ids=lambda shape: "x".join(map(str, shape)))
def test_a_narrow_still_is_seen_where_it_is_bright_or_refused_by_its_size(family, shape, rng):
    dark = np.full((*shape, 3), 60, np.uint8)
    name, size = family.name, f"{shape[0]} pixels high and {shape[1]} wide"
    tiled, longer = name in ("llava_next", "llava_onevision"), max(shape) // min(shape)
    if (
        (tiled and shape != (4, 90) and longer > 1)
        or (name in ("pixtral", "mistral3") and longer > 64)
        or (name == "mistral3" and max(shape) < 4)
        or (name.startswith(("qwen", "glm")) and longer > 200)
    ):
        why = " is too (narrow|small) .*(pad it|make it larger)" if name in ("pixtral", "mistral3") else ""
        with pytest.raises(ValueError, match=size + why):
            vpa.decode(family.vlm, dark, QUESTION, max_new_tokens=1)
        return
    before = family.vlm.prompt(dark, QUESTION)
    grid = before.grid
    left, top = np.maximum(grid.box[:, :2].min(0), 0)
    right, bottom = np.minimum(grid.box[:, 2:].max(0), [shape[1], shape[0]])
    for _ in range(2):
        row, col = (
            int(rng.integers(np.ceil(a), max(int(b), np.ceil(a) + 1))) for a, b in ((top, bottom), (left, right))
        )
        bright = dark.copy()
        bright[row, col] = 255
        change = changes(family.vlm, before, family.vlm.prompt(bright, QUESTION))[grid.position]
        assert change.max() > 0
        assert (change[~touches(grid, (col - 3, row - 3, col + 4, row + 4))] == 0).all()  # as far as smoothing reaches
        if longer <= 30:  # beyond that, some read a single pixel of it with all their cells
            assert touches(grid, (col, row, col + 1, row + 1))[change.argmax()]


@pytest.mark.shows("still", "several images")
@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
def test_crops_of_pan_and_scan(family, rng, monkeypatch):
    monkeypatch.setattr(family.vlm.image_processor, "do_pan_and_scan", True)
    shapes = [(40, 96), (96, 33), (64, 64)]
    frames = family.vlm.prompt([np.zeros((*shape, 3), np.uint8) for shape in shapes], QUESTION).grid.frames
    assert frames.tolist() == [[0, 0, 4, 8], [0, 1, 4, 4], [1, 0, 12, 4], [1, 1, 4, 4], [2, 0, 4, 4]]
    bright_cells_reach_their_patches(family, shapes, rng)


INTERNVL = ["internvl", "internvl2_5", "internvl3_5", "internvl3_5_moe"]
TILED = [*INTERNVL, "aya_vision", "llava_next", "llava_onevision", "idefics3", "smolvlm"]


@STILL
@pytest.mark.parametrize("family", TILED, indirect=True)
def test_the_shapes_above_are_cut_into_tiles_beside_an_overview(family):
    for shape in ((150, 150), (33, 150), (140, 37)):
        prompt = family.vlm.prompt(np.zeros((*shape, 3), np.uint8), QUESTION)
        (_, tiles, *size), (_, overview, *small) = prompt.grid.frames.tolist()
        assert (tiles, overview) == (0, 1) and size[0] * size[1] > small[0] * small[1]
        # After every row of tiles LLaVA-NeXT and LLaVA-OneVision put a token that is no patch.
        extra = int((prompt.ids == family.vlm.family.image_id).sum()) - len(prompt.grid)
        assert extra == (size[0] if family.name in ("llava_next", "llava_onevision") else 0)


@STILL
@pytest.mark.parametrize("family", ["pixtral", "mistral3"], indirect=True)
def test_every_row_but_the_last_ends_in_a_break_that_is_no_patch(family):
    prompt = family.vlm.prompt(np.zeros((33, 150, 3), np.uint8), QUESTION)
    rows, cols = prompt.grid.shape()
    ends = prompt.grid.position[prompt.grid.col == cols - 1] + 1
    words = family.vlm.tokenizer.convert_ids_to_tokens(prompt.ids[ends])
    assert rows > 1 and words == ["[IMG_BREAK]"] * (rows - 1) + ["[IMG_END]"]


@SEVERAL
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


@SEVERAL
def test_every_image_token_is_a_patch_or_a_break(family, photos):
    prompt = family.vlm.prompt(photos, QUESTION)
    image_tokens = np.flatnonzero((prompt.ids == family.vlm.family.image_id).numpy())
    assert set(prompt.grid.position) <= set(image_tokens)
    assert prompt.grid.n_images == 3 and (np.diff(prompt.grid.image) >= 0).all()
