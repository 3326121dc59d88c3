"""Every click, hover and drag, every control, and the same by typing."""

from __future__ import annotations

import numpy as np
from actions import action, attention, seen, steps_of
from open_page import shows


@action
def hovering_a_token_previews_its_map_and_says_its_value(view, traces):
    before, token = view.heat(), view.page.locator('.vp-strip [data-step="17"]').first
    token.hover()
    hovered = view.heat()
    assert hovered != before and "step 15 of 39" in view.text("live")
    unit = " of the softmax row"
    told = [part.rsplit(" ", 1)[1] for part in view.text("value").removesuffix(unit).split(f"{unit}; ")]
    assert view.text("value").startswith("Dense step 17 ") and seen(traces[0].tokens[17]) in view.text("value")
    assert all(
        shows(said, float(trace.mass.sel(layer=3, head=1)[17])) for said, trace in zip(told, traces[:2], strict=True)
    )
    view.away()
    assert view.heat() == before
    token.click()
    view.away()
    assert view.heat() == hovered and "step 17 of 39" in view.text("live")


@action
def clicking_a_token_of_the_other_trace_shows_that_trace(view, traces):
    view.page.locator(".vp-strip").nth(1).locator('[data-step="20"]').click()
    view.away()
    assert view.view["mode"] == 1 and "step 20 of 41" in view.text("live")
    assert steps_of(traces, view.view) == [-1, 20]


@action
def clicking_a_patch_shades_the_steps_that_looked_at_it(view, traces):
    token = view.page.locator('.vp-strip [data-step="17"]').first
    before = token.get_attribute("style")
    view.page.mouse.click(*view.point(2, 3))
    assert view.view["region"] == [2, 3, 2, 3] and token.get_attribute("style") != before
    looked = [attention(trace, view.view)[:, 2 * 8 + 3] for trace in traces[:2]]
    colour = "getComputedStyle(token).backgroundColor.match(/\\d+/g).map(Number)"
    colours = view.look(f"tokens.strips.map((strip) => strip.tokens.map((token) => {colour}))")
    blue = [255 - np.array(strip)[:, 2] for strip in colours]
    top = max(each.max() for each in looked)
    for drawn, each in zip(blue, looked, strict=True):  # 64 shades from the surface to the warm colour
        assert np.array_equal(np.argsort(drawn, kind="stable"), np.argsort(np.round(63 * each / top), kind="stable"))
    best, button = int(looked[0].argmax()), view.page.locator(".vp-peaks button").first
    assert button.inner_text().startswith(f"step {best} ") and shows(button.inner_text().split()[-1], looked[0][best])
    button.click()
    assert f"step {best} of 39" in view.text("live")
    assert view.look(
        "e.ref.peaks.firstChild.querySelector('button') === document.activeElement"
    )  # also where made anew
    view.press("Escape")
    assert view.view["region"] is None and token.get_attribute("style") == before


@action
def dragging_a_box_sums_over_its_patches(view, traces):
    view.page.mouse.move(*view.point(1, 2))
    view.page.mouse.down()
    view.page.mouse.move(*view.point(3, 5), steps=4)
    view.page.mouse.up()
    view.away()
    assert view.view["region"] == [1, 2, 3, 5]
    inside = attention(traces[0], view.view)[:, :64].reshape(-1, 8, 8)[:, 1:4, 2:6].sum((1, 2))
    assert shows(view.text("value").split("attention ")[1].split()[0], inside[15])
    assert shows(view.page.locator(".vp-peaks button").first.inner_text().split()[-1], inside.max())
    view.page.locator('[data-ref="clear"]').click()
    view.press("ArrowRight")  # although the button that has the focus is disabled now
    assert view.view["region"] is None and "step 16 of 39" in view.text("live")


@action
def a_region_can_be_typed(view, traces):
    for name, value in (("row0", "6"), ("col0", "1"), ("col1", "99")):
        view.page.locator(f'[data-ref="{name}"]').fill(value)
        view.page.locator(f'[data-ref="{name}"]').press("Tab")
    assert view.view["region"] == [6, 1, 6, 7]


@action
def the_curve_previews_under_the_pointer_and_moves_the_step(view, traces):
    box, area = view.page.locator('[data-ref="curve"]').bounding_box(), view.look("curve.area")
    last = view.look("e.data.last")

    def place(column: int) -> tuple[float, float]:
        return box["x"] + area["left"] + (area["right"] - area["left"]) * column / last, box["y"] + 60

    before = view.heat()
    view.page.mouse.move(*place(8))
    assert view.text("value").startswith("Dense step 8 ") and view.heat() != before
    assert "step 15 of 39" in view.text("live")
    view.page.mouse.down()
    assert "step 8 of 39" in view.text("live")
    view.page.mouse.move(*place(5), steps=3)
    view.page.mouse.up()
    view.away()
    assert "step 5 of 39" in view.text("live")
    cursor = view.page.locator('[data-ref="cursor"]').bounding_box()
    assert abs(cursor["x"] + cursor["width"] / 2 - place(5)[0]) < 1.5
    series = [trace.mass.sel(layer=3, head=1).values for trace in traces[:2]]
    assert all(np.allclose(a, b) for a, b in zip(view.look("e.series.map((s) => [...s])"), series, strict=True))


@action
def slider_and_buttons_move_the_step(view, traces):
    view.page.locator('[data-ref="slider"]').fill("8")
    assert "step 8 of 39" in view.text("live")
    for name, step in (("forward", 9), ("back", 8)):
        view.page.locator(f'[data-ref="{name}"]').click()
        assert f"step {step} of 39" in view.text("live")
    view.page.locator('[data-ref="divergence"]').click()
    assert steps_of(traces, view.view) == [20, -1]


@action
def play_is_a_button_too(view, traces):
    view.page.locator('[data-ref="play"]').click()
    view.settled("e.view.column > 15", True)
    if view.text("play") == "Pause":
        view.page.locator('[data-ref="play"]').click()
    assert view.text("play") == "Play"


@action
def each_control_above_the_image_changes_what_it_says(view, traces):
    changed = {"beside": 2, "layer": 5, "head": 4, "scale": "absolute"}
    for name, value in changed.items():
        view.page.locator(f'[data-ref="{name}"]').select_option(str(value))
    view.settled("e.shownPlane", "5/4/attention")
    view.page.locator('[data-ref="map"]').select_option("cividis")
    peak = view.pixels("heat")[attention(traces[0], view.view)[15, :64].argmax()]
    assert peak[2] < peak[0] and view.look("e.palette") == "cividis"  # its end is yellow, that of magma nearly white
    view.page.locator('[data-ref="opacity"]').fill("35")
    assert view.look("e.ref.heat.style.opacity") == "0.35"
    for name in ("sinks", "kept"):
        view.page.locator(f'[data-ref="{name}"]').click()
    view.page.locator('[data-ref="modes"] button').nth(2).click()
    changed |= {"sinks": "masked", "kept": True, "mode": 2, "map": "cividis", "opacity": 35}
    now = view.view
    assert {name: now[name] for name in changed} == changed


@action
def thumbnails_choose_the_image_and_keep_the_scale(view, traces):
    before, high = view.look("e.ref.photo.toDataURL()"), view.text("high")
    captions = [button.inner_text().split("\n") for button in view.page.locator(".vp-thumbs button").all()]
    masses = attention(traces[0], view.view)[15].reshape(2, 64).sum(1)
    assert all(shows(caption[1].split()[1], mass) for caption, mass in zip(captions, masses, strict=True))
    view.page.locator(".vp-thumbs button").nth(1).click()
    assert view.look("e.ref.photo.toDataURL()") != before and view.text("high") == high and view.view["panel"] == 1


@action
def help_and_theme_are_buttons(view, traces):
    view.page.locator('[data-ref="openHelp"]').click()
    assert view.page.locator(".vp-help").is_visible()
    view.page.locator('[data-ref="closeHelp"]').click()
    assert not view.page.locator(".vp-help").is_visible()
    seen_themes = []
    for _ in range(3):
        view.page.locator('[data-ref="theme"]').click()
        seen_themes.append((view.text("theme"), view.page.locator(".vp-explorer").get_attribute("data-theme")))
    assert seen_themes[:2] == [("Theme: light", "light"), ("Theme: dark", "dark")]
    assert seen_themes[2][0] == "Theme: auto"


@action
def the_view_is_saved_as_a_picture_and_copied_as_text(view, traces):
    with view.page.expect_download() as download:
        view.page.locator('[data-ref="savePng"]').click()
    assert download.value.suggested_filename == "dense_step_15_layer_3_head_1.png"
    for name in ("copyLink", "copyCommand"):
        view.look("(e.ref.told.textContent = '')")
        view.page.locator(f'[data-ref="{name}"]').click()
        view.settled("e.ref.told.textContent !== ''", True)
        assert view.text("told") in ("Copied.", "Press Ctrl+C to copy the selected text.")


@action
def a_link_restores_what_was_shown(view, traces):
    link = "step=28&layer=5&head=4&trace=pruned&beside=2&sinks=masked&panel=1&opacity=55&kept=shown&rows=1-2&cols=3-4"
    view.show(link)
    names = ("heat", "marks", "plot")
    before, pictures = view.view, [view.look(f"e.ref.{name}.toDataURL()") for name in names]
    view.settled("e.ref.link.textContent", f"#{link}")
    view.press("a", "d", "s", "Escape", "End")
    view.show(link)
    assert view.view == before and [view.look(f"e.ref.{name}.toDataURL()") for name in names] == pictures


@action
def tokens_are_text_whatever_they_hold(view, traces):
    for strip, trace in zip(view.page.locator(".vp-strip").all(), traces[:2], strict=True):
        assert [token.text_content() for token in strip.locator("[data-step]").all()] == [*map(seen, trace.tokens)]
    assert view.page.locator(".vp-explorer script").count() == 0
