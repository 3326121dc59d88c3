"""Reachable by keyboard, readable by machines and on a phone, in light and dark."""

from __future__ import annotations

import pytest
from made_traces import make_pair, make_trace

pytestmark = pytest.mark.browser

CONTROLS = 'button, select, input, [tabindex="0"]'


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("more", ["", "&trace=difference&kept=shown&sinks=masked&rows=1-2&cols=1-2"])
def test_axe_finds_nothing_serious(explored, dark, more):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = explored(*make_pair(images=2), link=f"step=12&layer=3{more}", dark=dark)
    for _ in range(2):  # the page, then the help over it
        found = axe.run(view.page).response
        serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []
        assert "color-contrast" in {rule["id"] for rule in found["passes"]}
        view.press("?")


@pytest.mark.parametrize("width", [390, 1280])
def test_every_control_is_reached_by_tab_with_a_visible_ring(explored, width):
    view = explored(*make_pair(images=2), link="step=12&layer=3&rows=1-2&cols=1-2", width=width)
    everything = f"[...document.querySelectorAll({CONTROLS!r})]"
    visible = f"{everything}.filter((x) => !x.disabled && x.offsetParent)"
    wanted = view.look(f"{visible}.length")
    seen, rings = set(), []
    for _ in range(wanted):
        view.press("Tab")
        seen.add(view.look(f"{visible}.indexOf(document.activeElement)"))
        rings.append(view.look("getComputedStyle(document.activeElement).outlineStyle"))
    assert seen == set(range(wanted)) and wanted > 20
    assert set(rings) == {"solid"}


def test_a_polite_region_tells_the_step(explored):
    view = explored(make_trace(), link="step=5")
    live = view.page.locator('[aria-live="polite"][data-ref="live"]')
    assert live.count() == 1
    view.press("ArrowRight")
    assert "step 6 of 39" in live.inner_text() and "mass" in live.inner_text()
    assert "step 6 of 39" in view.page.locator('[data-ref="slider"]').get_attribute("aria-valuetext")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("pair", [False, True], ids=["one", "pair"])
def test_nothing_is_wider_than_the_window(explored, width, pair):
    traces = make_pair(images=3) if pair else [make_trace(heads=(0, 1), images=3)]
    view = explored(*traces, width=width)
    assert view.look("document.documentElement.scrollWidth") <= width
    stage = view.page.locator('[data-ref="stage"]').bounding_box()
    strip = view.page.locator(".vp-strip").first.bounding_box()
    assert (strip["x"] > stage["x"] + stage["width"]) == (width == 1280)
    assert (strip["y"] > stage["y"] + stage["height"]) == (width == 390)


def test_theme_follows_the_system_until_it_is_chosen(explored):
    view = explored(make_trace())
    theme = view.page.locator(".vp-explorer")
    assert theme.get_attribute("data-theme") == "light"
    view.page.emulate_media(color_scheme="dark")
    view.page.wait_for_selector('.vp-explorer[data-theme="dark"]')  # the browser tells the page in its own time
    view.page.locator('[data-ref="theme"]').click()
    assert theme.get_attribute("data-theme") == "light" and view.text("theme") == "Theme: light"


def test_the_theme_of_a_notebook_wins_over_the_system(explored):
    view = explored(make_trace(), dark=True)
    for name, kind, theme in (
        ("vscodeThemeKind", "vscode-light", "light"),
        ("vscodeThemeKind", "vscode-high-contrast", "dark"),
        ("jpThemeLight", "true", "light"),
    ):
        view.look(f"(document.body.dataset.{name} = '{kind}')")
        view.page.wait_for_selector(f'.vp-explorer[data-theme="{theme}"]')


def test_a_long_question_leaves_the_image_in_sight(explored):
    trace = make_trace()
    view = explored(trace.with_meta({**trace.meta, "question": "where is it ? " * 800}))
    assert view.page.locator('[data-ref="stage"]').bounding_box()["y"] < 450
    assert view.page.locator("h1").get_attribute("title") == "where is it ? " * 800


def test_the_page_says_that_attention_is_not_an_explanation(explored):
    view = explored(make_trace())
    assert "does not by itself explain" in view.page.locator(".vp-foot").inner_text()
