"""On a phone the image stays in sight while tokens are tapped."""

from __future__ import annotations

import pytest
from made_traces import make_pair, make_trace

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}


def on_a_phone(explored, traces, height: int = PHONE["height"]):
    view = explored(*traces, width=PHONE["width"])
    view.page.set_viewport_size({**PHONE, "height": height})
    return view.open()


def box(view, selector: str) -> dict:
    return view.page.locator(selector).first.bounding_box()


@pytest.mark.parametrize("pair", [False, True], ids=["one", "pair"])
@pytest.mark.parametrize("height", [844, 667])
def test_the_image_is_in_sight_when_a_token_is_tapped(explored, pair, height):
    traces = make_pair(steps=200) if pair else [make_trace(steps=200)]
    view = on_a_phone(explored, traces, height)
    before = view.heat()
    view.page.locator('.vp-strip [data-step="30"]').first.click()
    assert view.heat() != before
    stage, step, strip = (box(view, selector) for selector in (".vp-stage", ".vp-step", ".vp-strip"))
    seen = min(stage["y"] + stage["height"], height) - max(stage["y"], 0)
    assert seen >= 0.8 * stage["height"] and 0 < stage["height"] <= 0.43 * height
    below = max(stage["y"] + stage["height"], step["y"] + step["height"])
    assert min(strip["y"] + strip["height"], height) - max(strip["y"], below) >= 80


def test_nothing_covers_the_image_on_first_load(explored):
    view = on_a_phone(explored, make_pair())
    assert view.look("scrollY") == 0
    stage, step = box(view, ".vp-stage"), box(view, ".vp-step")
    assert step["y"] >= stage["y"] + stage["height"]
    middle, bottom = stage["x"] + stage["width"] / 2, min(stage["y"] + stage["height"], PHONE["height"]) - 2
    assert view.look(f"e.ref.stage.contains(document.elementFromPoint({middle}, {bottom}))")
