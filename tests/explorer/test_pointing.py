"""Clicks, hovering and dragging on tokens, image and curve, and the same by typing."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import make_trace
from open_page import shows

pytestmark = pytest.mark.browser


def test_clicking_a_token_shows_its_step_and_hovering_only_previews(explored):
    view = explored(make_trace(), link="step=5&layer=3")
    before = view.heat()
    view.page.locator('[data-step="17"]').hover()
    hovered = view.heat()
    assert hovered != before and view.view["column"] == 5
    view.page.mouse.move(5, 5)
    assert view.heat() == before
    view.page.locator('[data-step="17"]').click()
    view.page.mouse.move(5, 5)
    assert view.view["column"] == 17 and view.heat() == hovered


def test_clicking_a_patch_shades_the_steps_that_looked_at_it(explored):
    trace = make_trace()
    view = explored(trace, link="step=5&layer=3")
    before = view.page.locator('[data-step="17"]').get_attribute("style")
    view.page.mouse.click(*view.point(2, 3))
    assert view.view["region"] == [2, 3, 2, 3]
    looked = trace.attention.sel(layer=3).values.astype(float)[:, 2 * 8 + 3]
    assert view.page.locator('[data-step="17"]').get_attribute("style") != before
    best = int(looked.argmax())
    first = view.page.locator(".vp-peaks button").first
    assert first.inner_text().startswith(f"step {best} ") and shows(first.inner_text().split()[-1], looked[best])
    colour = "getComputedStyle(token).backgroundColor.match(/\\d+/g).map(Number)"
    red = view.look(f"tokens.strips[0].tokens.map((token) => {colour})")
    wanted = np.round(63 * looked / looked.max())  # 64 shades from the surface to the warm colour
    distance = 255 - np.array(red)[:, 2]
    assert np.array_equal(np.argsort(distance, kind="stable"), np.argsort(wanted, kind="stable"))
    first.click()
    assert view.view["column"] == best
    view.press("Escape")
    assert view.view["region"] is None
    assert view.page.locator('[data-step="17"]').get_attribute("style") == before


def test_dragging_a_box_sums_over_its_patches(explored):
    trace = make_trace()
    view = explored(trace, link="step=5&layer=3")
    x0, y0 = view.point(1, 2)
    x1, y1 = view.point(3, 5)
    view.page.mouse.move(x0, y0)
    view.page.mouse.down()
    view.page.mouse.move(x1, y1, steps=4)
    view.page.mouse.up()
    view.page.mouse.move(5, 5)
    assert view.view["region"] == [1, 2, 3, 5]
    maps = trace.grid.to_map(trace.attention.sel(layer=3).values)
    inside = maps[:, 1:4, 2:6].sum((1, 2), dtype=float)
    assert shows(view.text("value").split("attention ")[1].split()[0], inside[5])
    assert shows(view.page.locator(".vp-peaks button").first.inner_text().split()[-1], inside.max())


def test_a_region_can_be_typed(explored):
    view = explored(make_trace(), link="step=5&layer=3")
    for name, value in (("row0", "6"), ("col0", "1")):
        view.page.locator(f'[data-ref="{name}"]').fill(value)
        view.page.locator(f'[data-ref="{name}"]').press("Tab")
    assert view.view["region"] == [6, 1, 6, 1]
    view.page.locator('[data-ref="col1"]').fill("99")
    view.page.locator('[data-ref="col1"]').press("Tab")
    assert view.view["region"] == [6, 1, 6, 7]
    view.page.locator('[data-ref="clear"]').click()
    assert view.view["region"] is None


def test_curve_slider_and_buttons_move_the_step(explored):
    view = explored(make_trace(), link="step=5")
    box = view.page.locator('[data-ref="curve"]').bounding_box()
    area = view.look("curve.area")
    view.page.mouse.click(box["x"] + (area["left"] + area["right"]) / 2, box["y"] + 60)
    assert view.view["column"] in (19, 20)
    view.page.locator('[data-ref="slider"]').fill("8")
    assert view.view["column"] == 8
    view.page.locator('[data-ref="forward"]').click()
    assert view.view["column"] == 9
    view.page.locator('[data-ref="back"]').click()
    assert view.view["column"] == 8
