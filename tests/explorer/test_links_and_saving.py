"""A link restores the view; the view is saved as a picture."""

from __future__ import annotations

import io

import pytest
from made_traces import make_pair, make_trace
from PIL import Image

pytestmark = pytest.mark.browser


def colours(image: Image.Image) -> int:
    return len(image.convert("RGB").getcolors(maxcolors=image.width * image.height))


def test_a_link_restores_the_exact_view(explored):
    view = explored(*make_pair(heads=(0, 1)), link="step=3&layer=2")
    view.press("Shift+ArrowRight", "ArrowRight", "d", "a", "s", "k", "]", "ArrowUp")
    view.page.locator('[data-ref="map"]').select_option("cividis", force=True)
    view.page.locator('[data-ref="opacity"]').fill("55")
    view.settled("e.ref.heat.style.opacity", "0.55")
    view.page.mouse.click(*view.point(4, 4))
    view.page.mouse.move(5, 5)
    view.page.wait_for_url("**opacity=55**rows=4-4&cols=4-4")  # the address follows when the view has settled
    link, before = view.page.url.split("#")[1], view.view
    pictures = [view.look(f"e.ref.{name}.toDataURL()") for name in ("heat", "marks", "plot")]
    assert f"#{link}" == view.text("link")
    view.open(link)
    assert view.view == before
    assert [view.look(f"e.ref.{name}.toDataURL()") for name in ("heat", "marks", "plot")] == pictures
    assert f"view='{link}'" in view.text("command")


def test_a_short_link_and_a_wrong_one(explored):
    view = explored(make_trace(), link="step=12&layer=3")
    assert (view.view["column"], view.view["layer"]) == (12, 3)
    view.open("step=4000&layer=x&scale=no&rows=9-2&opacity=1e9")
    assert view.view["column"] == 0 and view.view["scale"] == "step" and view.view["region"] is None
    view.page.evaluate("location.hash = 'step=9&layer=5'")
    view.settled("e.shownPlane", "5/mean/attention")
    assert view.view["column"] == 9


def test_an_address_that_the_reader_changes_wins_over_one_that_is_being_written(explored):
    view = explored(make_trace(), link="step=12&layer=3")
    view.press("ArrowRight")  # its address is written later, here before the page hears of the reader's
    view.look("(location.hash = 'step=9&layer=5', e.writeLink())")
    view.settled("e.shownPlane", "5/mean/attention")
    view.settled("e.ref.link.textContent", "#step=9&layer=5")
    assert "step 9 of" in view.text("live") and view.page.url.endswith("#step=9&layer=5")


def test_the_view_is_saved_as_a_picture(explored):
    view = explored(*make_pair(), link="step=12&layer=3&kept=shown&rows=1-2&cols=1-2")
    with view.page.expect_download() as download:
        view.page.locator('[data-ref="savePng"]').click()
    assert download.value.suggested_filename == "dense-0_step_12_layer_3_kept_shown_rows_1-2_cols_1-2.png"
    image = Image.open(download.value.path())
    assert image.format == "PNG" and image.width > 1600 and colours(image) > 50


def test_copying_says_what_happened(explored):
    view = explored(make_trace(), link="step=12&layer=3")
    view.page.locator('[data-ref="copyCommand"]').click()
    view.settled("e.ref.told.textContent !== ''", True)
    assert view.text("told") in ("Copied.", "Press Ctrl+C to copy the selected text.")


def test_screenshot_is_not_blank(explored):
    view = explored(make_trace(), link="step=5&layer=3")
    image = Image.open(io.BytesIO(view.page.screenshot()))
    assert colours(image) > 200
