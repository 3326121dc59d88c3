"""All maps of a step, values without the picture, tokens from the right, paper, and one line of controls."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import make_pair, make_trace

from visionpulse_analysis.explorer import explore

pytestmark = pytest.mark.browser
HEADS = (0, 2, 5)


def small_maps(view) -> np.ndarray:
    """float [layer * head, row, col, 4]: what the small canvases hold."""
    return np.array(
        view.look(
            "e.parts.find((part) => part.maps).maps.map(({ canvas: c }) =>"
            " [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
        )
    ).reshape(-1, 8, 8, 4)


def test_every_layer_and_head_is_a_small_map_of_the_step_and_a_click_enlarges_it(explored):
    trace = make_trace(heads=HEADS)
    view = explored(trace, link="step=4&layer=3&head=2")
    view.press("o")
    view.settled("e.parts.find((part) => part.maps).loaded", "attention")
    maps, values = small_maps(view), trace.attention[4].values.astype(float).reshape(9, 8, 8)
    # On its own scale: the brightest pixel is the strongest patch, and a brighter one never has a lower value.
    brightness = maps[..., :3].sum(-1)
    for bright, value in zip(brightness, values, strict=True):
        order = np.argsort(value, axis=None)
        assert (np.diff(bright.ravel()[order]) >= 0).all() and bright.max() == maps[..., :3].sum(-1).max()
    labels = [button.get_attribute("aria-label") for button in view.page.locator(".vp-maps button").all()]
    mass = trace.attention[4].sel(layer=5, head=0).values.astype(np.float32).sum()
    assert len(labels) == 9 and labels[6] == f"layer 5, head 0: {mass:.2g}"
    view.page.locator(".vp-maps button").nth(6).click()
    view.settled("e.shownPlane", "5/0/attention")
    view.settled("e.ref.link.textContent", "#step=4&layer=5&head=0&overview=shown")
    assert view.page.locator('.vp-maps [aria-pressed="true"]').get_attribute("title") == "layer 5, head 0"
    view.press("ArrowRight")
    assert not np.array_equal(small_maps(view), maps)
    view.press("o")
    assert not view.page.locator(".vp-overview").is_visible()


def test_one_map_is_no_overview(explored):
    view = explored(make_trace(layers=(3,)))
    view.press("o")
    assert not view.view["overview"] and not view.page.locator('[data-ref="openOverview"]').is_visible()


def bar(view) -> np.ndarray:
    """uint8 [2, 256, 4]: the colour bar."""
    found = view.look("[...e.ref.bar.getContext('2d').getImageData(0, 0, 256, 2).data]")
    return np.array(found, int).reshape(2, 256, 4)


def test_the_bar_has_the_colours_that_lie_on_the_picture_and_v_hides_the_picture(explored):
    """On white and black ground the painted patch is what the bar says; without the picture there is one colour."""
    pictures = [np.zeros((64, 64, 3), np.uint8)]
    pictures[0][:, 32:] = 255
    trace = make_trace(pictures=pictures)
    view = explored(trace, link="step=4&layer=3")

    def seen() -> np.ndarray:
        photo, heat = view.pixels("photo").astype(float), view.pixels("heat").astype(float)
        share = heat[:, 3:] / 255 * view.look("e.alpha")
        return (1 - share) * photo[:, :3] + share * heat[:, :3]

    values = trace.attention[4].sel(layer=3).values.astype(float)
    place = np.round(255 * values / values.max()).astype(int)
    white = np.arange(64) % 8 >= 4
    expected = np.where(white[:, None], bar(view)[0, place, :3], bar(view)[1, place, :3])
    assert np.abs(seen() - expected).max() <= 3  # rounded twice
    view.press("v")
    assert view.view["picture"] == "hidden" and "picture hidden" in view.text("unit")
    assert np.array_equal(bar(view)[0], bar(view)[1])
    assert np.abs(seen() - bar(view)[0, place, :3]).max() <= 1
    view.press("v")
    assert np.abs(seen() - expected).max() <= 3


def test_the_figure_of_a_view_follows():
    dense, pruned = make_pair(heads=HEADS)
    view = "step=15&layer=3&head=2&trace=difference&picture=hidden&overview=shown"
    figure = explore(dense, pruned, view=view).figure()
    mosaic = next(ax.images[0].get_array() for ax in figure.axes if ax.get_xlabel() == "head")
    wanted = (pruned.attention[15].astype(float) - dense.attention[15].astype(float)).values[1, 2].reshape(8, 8)
    shown = np.asarray(mosaic)[9:17, 18:26]  # layer 3, head 5; a row and a column between maps
    assert np.allclose(shown, wanted / np.abs(wanted).max())


@pytest.mark.parametrize("words", ["انظر إلى الدائرة الحمراء في الصورة", "closely look at الدائرة الحمراء there"])
def test_tokens_written_from_the_right_stand_in_their_order(explored, words):
    tokens = [f" {word}" if at else word for at, word in enumerate(words.split())]
    view = explored(make_trace(tokens=tokens, steps=len(tokens)))
    lefts, ends = (
        view.look(f"tokens.strips[0].tokens.map((one) => one.getBoundingClientRect().{side})")
        for side in ("left", "right")
    )
    arabic = [at for at, token in enumerate(tokens) if token.strip()[0] > "z"]
    # The blank before the first of them may stand at the other side, with the words before.
    assert [ends[at] for at in arabic] == sorted((ends[at] for at in arabic), reverse=True)
    latin = [at for at in range(len(tokens)) if at not in arabic]
    assert [lefts[at] for at in latin] == sorted(lefts[at] for at in latin)


@pytest.mark.parametrize("width", [390, 1008])
def test_nothing_is_wider_than_the_window_and_the_controls_take_one_line(explored, width):
    view = explored(*make_pair(heads=HEADS), link="step=15&overview=shown&kept=shown&rows=1-2&cols=1-2", width=width)
    assert view.look("document.documentElement.scrollWidth") == width
    if width == 1008:
        tops = view.look(
            "[...e.root.querySelector('.vp-toolbar').children].filter((one) => one.offsetParent)"
            ".map((one) => { const box = one.getBoundingClientRect(); return box.top + box.height / 2; })"
        )
        assert len(tops) >= 6 and max(tops) - min(tops) < 4


def test_paper_has_no_buttons_and_all_tokens(explored):
    view = explored(*make_pair(steps=300))
    view.page.emulate_media(media="print")
    assert not [one for one in view.page.locator("button, select, input").all() if one.is_visible()]
    assert view.look("tokens.strips.every(({ box }) => box.scrollHeight <= box.clientHeight + 1)")
