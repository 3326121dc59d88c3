"""Several images, the frames of a video, and grids that cover a part of their picture."""

from __future__ import annotations

import base64
import dataclasses
import io

import matplotlib as mpl
import numpy as np
import pytest
from made_traces import make_pair, make_trace, make_video, picture
from open_page import shows, word_after
from PIL import Image

from visionpulse_analysis.explorer.figure import draw_view
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import frame_labels, frame_pictures, media_of


def photo(view) -> np.ndarray:
    """uint8 [row_px, col_px, 3]: what lies under the map, as large as the picture itself."""
    url = view.look(
        "((c) => { const small = document.createElement('canvas'), panel = e.data.panels[e.view.panel];"
        " Object.assign(small, { width: panel.width, height: panel.height });"
        " small.getContext('2d').imageSmoothingEnabled = false;"
        " small.getContext('2d').drawImage(c, 0, 0, panel.width, panel.height);"
        " return small.toDataURL(); })(e.ref.photo)"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


@pytest.mark.browser
def test_several_images_are_thumbnails_with_one_scale(explored):
    trace = make_trace(images=3)
    view = explored(trace, link="step=5&layer=3")
    stored = trace.attention.sel(layer=3)[5].values.astype(float)
    captions = [button.inner_text().split("\n") for button in view.page.locator(".vp-thumbs button").all()]
    assert [caption[0] for caption in captions] == ["Image 1", "Image 2", "Image 3"]
    masses = stored.reshape(3, 64).sum(1)
    assert all(shows(caption[1].split()[1], mass) for caption, mass in zip(captions, masses, strict=True))
    high = view.text("high")
    assert shows(high, stored.max())
    before = view.look("e.ref.photo.toDataURL()")
    view.page.locator(".vp-thumbs button").nth(2).click()
    assert view.look("e.ref.photo.toDataURL()") != before and view.text("high") == high
    view.page.mouse.move(*view.point(1, 1))
    assert shows(word_after(view.text("value"), "attention "), stored[128 + 9])


@pytest.mark.browser
def test_the_frames_of_a_video_are_thumbnails_with_their_own_pictures(explored):
    trace = make_video()
    view = explored(trace, link="step=5&layer=3&panel=2")
    stored = trace.attention.sel(layer=3)[5].values.astype(float)
    captions = [button.inner_text().split("\n")[0] for button in view.page.locator(".vp-thumbs button").all()]
    assert captions == ["Frame 1", "Frame 2", "Frame 3"]
    assert np.abs(photo(view).astype(int) - trace.images[2]).mean() < 2  # nearest pixel, at a size of no whole multiple
    assert np.abs(photo(view).astype(int) - trace.images[0]).mean() > 4
    view.page.mouse.move(*view.point(3, 4, rows=4, cols=6))
    assert shows(word_after(view.text("value"), "attention "), stored[48 + 22])
    view.page.mouse.click(*view.point(3, 4, rows=4, cols=6))
    best = view.page.locator(".vp-peaks button").first.inner_text()
    looked = trace.attention.sel(layer=3)[:, 48 + 22].values.astype(float)
    assert best.startswith(f"step {looked.argmax()} ") and shows(best.split()[-1], looked.max())


@pytest.mark.browser
def test_the_chosen_one_of_many_frames_is_in_sight(explored):
    view = explored(make_video(12), link="step=5&panel=9")
    row, chosen = (
        view.page.locator(part).bounding_box() for part in (".vp-thumbs", '.vp-thumbs [aria-pressed="true"]')
    )
    assert row["x"] <= chosen["x"] and chosen["x"] + chosen["width"] <= row["x"] + row["width"]
    assert view.page.locator('.vp-thumbs [aria-pressed="true"]').inner_text().startswith("Frame 10")


@pytest.mark.browser
def test_patches_lie_where_their_boxes_are(explored):
    trace = make_trace(grid=part_of_a_picture(), pictures=[picture(60, 100)])
    view = explored(trace, link="step=5&layer=3")
    width = view.look("e.ref.heat.width")
    wanted = np.floor(np.asarray(trace.grid.box)[:, [0, 1]] * width / 100 + 0.5)  # as JavaScript rounds
    assert np.array_equal(np.array(view.look("stage.rects"))[:, 1:3], wanted)
    box = view.page.locator('[data-ref="stage"]').bounding_box()
    view.page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"])
    assert view.text("value") == "Point at a patch, a token or the curve to read its value."


def test_the_paper_figure_draws_the_panel_and_the_boxes():
    for trace, panel in ((make_video(), 2), (make_trace(grid=part_of_a_picture(), pictures=[picture(60, 100)]), 0)):
        axes = draw_view(trace, view=f"step=5&layer=3&panel={panel}").axes[0]
        assert np.array_equal(axes.images[0].get_array(), trace.images[panel])
        (patches,) = axes.collections
        drawn = [path.get_extents().extents for path in patches.get_paths()]
        assert np.allclose(drawn, trace.grid.box[trace.grid.frame == panel])
        stored = trace.attention.sel(layer=3)[5].values.astype(float)
        wanted = mpl.colormaps["magma"](stored[trace.grid.frame == panel] / stored.max())
        assert np.allclose(np.asarray(patches.get_facecolor())[:, :3], wanted[:, :3])


def test_labels_say_which_image_and_which_frame_and_when():
    image, frame = np.array([[0, 0], [1, 0], [1, 1]]).repeat(2, axis=0).T
    given = (np.arange(6), image, frame, np.zeros(6, int), np.tile([0, 1], 3), np.tile([0, 0, 8, 8], (6, 1)))
    pictures = [picture(8, 8, seed=n) for n in range(4)]
    tiles = make_trace(grid=PatchGrid(*given, image_size=[[8, 8]] * 2), pictures=pictures[:2])
    assert frame_labels(tiles) == ["Image 1", "Image 2, frame 1", "Image 2, frame 2"]
    assert frame_labels(make_video()) == ["Frame 1", "Frame 2", "Frame 3"]
    assert frame_labels(make_trace()) == ["Image 1"]
    lines = {"frames": [[0, 0, 1, 2], [1, 0, 1, 2], [1, 1, 1, 2]], "pictures": [[0, 1], [1, 3], [3, 4]]}
    mixed = make_trace(grid=PatchGrid(*given, image_size=[[8, 8]] * 2, **lines), pictures=pictures)
    assert frame_labels(mixed) == ["Image 1", "Video 2, frames 1-2", "Video 2, frame 3"]
    assert all(np.array_equal(a, pictures[n]) for a, n in zip(frame_pictures(mixed)[0], (0, 1, 3), strict=True))
    timed = mixed.with_meta({**mixed.meta, "videos": [{"image": 1, "fps": 2.0, "total": 9, "frames": [0, 4, 8]}]})
    assert frame_labels(timed) == ["Image 1", "Video 2, frames 1-2, 0-2 s", "Video 2, frame 3, 4 s"]
    assert [len(getattr(one, "frames", one)) for one in media_of(timed)] == [8, 3]


def test_pictures_that_do_not_fit_the_frames_are_not_shown_and_that_is_said():
    trace = make_video()
    pictures, note = frame_pictures(trace)
    assert note is None and all(np.array_equal(a, b) for a, b in zip(pictures, trace.images, strict=True))
    two = make_trace(grid=trace.grid, pictures=trace.images[:2])
    assert frame_pictures(two) == ([None] * 3, "No pictures are shown: the trace holds 2 of 3.")
    whole = dataclasses.replace(trace.grid, pictures=None)  # three tiles of one picture
    still = make_trace(grid=whole, pictures=trace.images[:1])
    assert all(np.array_equal(picture, trace.images[0]) for picture in frame_pictures(still)[0])
    assert draw_view(two, view="panel=1").axes[0].images[0].get_array().shape == (32, 48, 3)


@pytest.mark.browser
def test_a_difference_over_several_images_says_the_mass_gained_or_lost(explored):
    dense, pruned = make_pair(images=2)
    view = explored(dense, pruned, link="step=3&layer=3&trace=difference")
    lost = (
        (pruned.attention.sel(layer=3)[3].astype(float) - dense.attention.sel(layer=3)[3].astype(float))
        .values[64:]
        .sum()
    )
    caption = view.page.locator(".vp-thumbs button").nth(1).inner_text().split("\n")[1]
    assert shows(caption.split()[1], lost)


def part_of_a_picture() -> PatchGrid:
    """The middle square of a picture of 60 x 100 pixels, as models see it that crop: 4 x 4 patches of 15 pixels."""
    row, col = np.divmod(np.arange(16), 4)
    box = np.stack([20 + 15 * col, 15 * row, 35 + 15 * col, 15 + 15 * row], axis=1)
    zero = np.zeros(16, int)
    return PatchGrid(np.arange(16), zero, zero, row, col, box, image_size=[[60, 100]])
