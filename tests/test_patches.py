"""PatchGrid: index -> cell -> index, pixels, several images, and every wrong input named."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from visionpulse_analysis.media.patch_grid import PatchGrid


@pytest.fixture
def two_images() -> PatchGrid:
    """2 x 3 cells of 8 x 10 pixels, then 4 x 2 cells of 5 x 7 pixels, with text between the images."""
    positions = [*range(4, 10), *range(20, 28)]
    return PatchGrid.from_grid(positions, rows=[2, 4], cols=[3, 2], image_sizes=[(16, 30), (20, 14)])


def test_index_to_cell_and_back(two_images: PatchGrid) -> None:
    index = np.arange(len(two_images))
    for image in range(two_images.n_images):
        cells = two_images.to_map(index, image=image)
        assert cells.shape == two_images.shape(image)
        for patch in np.flatnonzero(two_images.image == image):
            assert cells[two_images.row[patch], two_images.col[patch]] == patch


def test_reading_order_is_row_by_row(two_images: PatchGrid) -> None:
    np.testing.assert_array_equal(two_images.to_map(np.arange(14)), [[0, 1, 2], [3, 4, 5]])


def test_every_pixel_belongs_to_the_patch_whose_box_covers_it(two_images: PatchGrid) -> None:
    for image, (height, width) in enumerate(two_images.image_size):
        rows, cols = two_images.shape(image)
        cells = two_images.to_map(np.arange(14), image=image)
        for y in range(height):
            for x in range(width):
                assert two_images.patch_at(x, y, image) == cells[y * rows // height, x * cols // width]


def test_boxes_tile_each_image(two_images: PatchGrid) -> None:
    left, top, right, bottom = two_images.box.T
    for image, (height, width) in enumerate(two_images.image_size):
        here = two_images.image == image
        assert ((right - left) * (bottom - top))[here].sum() == pytest.approx(height * width, rel=1e-6)


@pytest.mark.parametrize("x, y", [(-1, 0), (0, -1), (30, 0), (0, 16)])
def test_no_patch_outside_the_image(two_images: PatchGrid, x: int, y: int) -> None:
    assert two_images.patch_at(x, y) is None


def test_map_keeps_leading_axes_and_widens_half_precision(two_images: PatchGrid) -> None:
    values = np.random.default_rng(0).random((5, 2, 14)).astype(np.float16)
    cells = two_images.to_map(values, image=1)
    assert cells.shape == (5, 2, 4, 2) and cells.dtype == np.float32
    np.testing.assert_array_equal(cells[..., 3, 1], values[..., 13])


def test_take_keeps_the_shape_and_leaves_holes(two_images: PatchGrid) -> None:
    taken = two_images.take([4, 0])
    assert taken.shape() == two_images.shape()
    np.testing.assert_array_equal(taken.position, two_images.position[[4, 0]])
    nan = np.nan
    np.testing.assert_array_equal(taken.to_map(np.array([7.0, 9.0])), [[9, nan, nan], [nan, 7, nan]])
    assert two_images.take(np.arange(14) < 2).equals(two_images.take([0, 1]))
    assert len(two_images.take([])) == 0 and two_images.take([]).shape(1) == two_images.shape(1)


def test_equals_sees_every_field(two_images: PatchGrid) -> None:
    assert two_images.equals(dataclasses.replace(two_images))
    for name in ["position", "box", "image_size"]:
        changed = dataclasses.replace(two_images, **{name: getattr(two_images, name) + 1})
        assert not two_images.equals(changed), name


def test_arrays_are_read_only_copies(two_images: PatchGrid) -> None:
    with pytest.raises(ValueError, match="read-only"):
        two_images.row[0] = 1
    rows = np.array(two_images.row)
    grid = dataclasses.replace(two_images, row=rows)
    rows[0] = 1
    assert grid.equals(two_images)


def test_frames_of_a_video_have_their_own_maps() -> None:
    cell, box = np.zeros(2), np.tile([0, 0, 8, 8], (2, 1))
    grid = PatchGrid(np.array([3, 4]), cell, np.array([0, 1]), cell, cell, box, np.array([[8, 8]]))
    assert grid.to_map(np.array([1.0, 2.0]), frame=1) == [[2.0]]
    assert grid.patch_at(1, 1, frame=1) == 1


def test_wrong_count_names_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"5 positions.* 6 cells"):
        PatchGrid.from_grid(range(5), rows=2, cols=3, image_sizes=[(16, 24)])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"row": np.zeros(13)}, r"PatchGrid.row must be \[patch\] of shape \(14,\), got shape \(13,\)"),
        ({"box": np.zeros((14, 3))}, r"PatchGrid.box must be \[patch, 4\]"),
        ({"col": np.full(14, 0.5)}, "PatchGrid.col must hold whole numbers"),
        ({"row": np.full(14, 40_000)}, "PatchGrid.row must hold whole numbers that fit int16"),
        ({"position": -np.arange(14)}, "PatchGrid.position must not be negative"),
        ({"position": np.zeros(14)}, "PatchGrid.position must be unique"),
        ({"image": np.full(14, 2)}, "PatchGrid.image is 2, but there are 2 image sizes"),
        ({"row": np.zeros(14)}, "share one"),
        ({"frames": [[0, 0, 1, 3], [1, 0, 4, 2]]}, r"PatchGrid.frames says \(1, 3\).*reach \(2, 3\)"),
        ({"frames": [[0, 0, 2, 3]]}, r"no \(image, frame\)"),
    ],
)
def test_wrong_arrays_are_refused_by_name(two_images: PatchGrid, change: dict, message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        dataclasses.replace(two_images, **change)


def test_wrong_requests_are_refused(two_images: PatchGrid) -> None:
    with pytest.raises(ValueError, match=r"14 patches on the last axis, got \(3, 13\)"):
        two_images.to_map(np.zeros((3, 13)))
    for call in [two_images.shape, two_images.patch_at, two_images.to_map]:
        arguments = {"shape": (), "patch_at": (0, 0), "to_map": (np.zeros(14),)}[call.__name__]
        with pytest.raises(IndexError, match=r"no \(image, frame\) \(2, 0\)"):
            call(*arguments, image=2)
    for wrong in [[14], [-1], np.ones(13, bool)]:
        with pytest.raises(IndexError):
            two_images.take(wrong)


def test_reading_traces_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, visionpulse_analysis as vpa\n"
        "assert 'numpy' not in sys.modules, 'importing the package must load nothing'\n"
        "vpa.PatchGrid, vpa.Trace, vpa.TraceStore, vpa.create_trace, vpa.StoreVersionError\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), set(vpa.__all__) <= set(dir(vpa)))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[] True\n", done.stderr


def test_unknown_public_name_is_an_attribute_error() -> None:
    import visionpulse_analysis as vpa

    with pytest.raises(AttributeError, match=r"no attribute 'Tracer'; public names: AblateHeads, HidePatches"):
        _ = vpa.Tracer
