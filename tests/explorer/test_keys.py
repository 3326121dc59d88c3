"""Every key changes the view as it should."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import SINK, make_pair, make_trace
from open_page import shows

pytestmark = pytest.mark.browser


def test_arrows_move_the_step_and_shift_moves_ten(explored):
    view = explored(make_trace(), link="step=5")
    first = view.heat()
    view.press("ArrowRight")
    assert "step 6 of 39" in view.text("live") and view.heat() != first
    view.press("ArrowLeft", "ArrowLeft")
    assert "step 4 of 39" in view.text("live")
    view.press("Shift+ArrowRight")
    assert "step 14 of 39" in view.text("live")
    view.press("Shift+ArrowLeft", "Shift+ArrowLeft")
    assert "step 0 of 39" in view.text("live")
    view.press("End")
    assert "step 39 of 39" in view.text("live")
    view.press("ArrowRight")
    assert "step 39 of 39" in view.text("live")
    view.press("Home")
    assert "step 0 of 39" in view.text("live")


def test_up_and_down_choose_the_layer_and_end_at_the_mean(explored):
    view = explored(make_trace(), link="step=5&layer=2")
    first = view.heat()
    view.press("ArrowUp")
    view.settled("e.shownPlane", "3/mean")
    assert view.heat() != first and view.page.locator('[data-ref="layer"]').input_value() == "3"
    view.press("ArrowUp", "ArrowUp", "ArrowUp")
    view.settled("e.shownPlane", "mean/mean")
    view.press("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown")
    view.settled("e.shownPlane", "2/mean")
    assert view.heat() == first


def test_brackets_choose_the_head(explored):
    view = explored(make_trace(heads=(0, 7)), link="step=5&layer=2&head=0")
    first = view.heat()
    view.press("]")
    view.settled("e.shownPlane", "2/7")
    assert view.heat() != first and view.page.locator('[data-ref="head"]').input_value() == "7"
    view.press("]")
    view.settled("e.shownPlane", "2/mean")
    view.press("[", "[")
    view.settled("e.shownPlane", "2/0")
    assert view.heat() == first


def test_space_plays_and_pauses(explored):
    view = explored(make_trace(steps=400), link="step=5")  # too long to end meanwhile, on any machine
    view.press(" ")
    assert view.text("play") == "Pause"
    view.settled("e.view.column > 7", True)
    view.press(" ")
    stopped = view.view["column"]
    view.page.wait_for_timeout(200)  # more than a step lasts
    assert view.view["column"] == stopped and view.text("play") == "Play"


def test_d_goes_through_dense_pruned_and_difference(explored):
    view = explored(*make_pair(), link="step=5&layer=3")
    seen = [view.heat()]
    for mode in (1, 2):
        view.press("d")
        assert view.view["mode"] == mode
        seen.append(view.heat())
    assert len(set(seen)) == 3
    assert "pruned \N{MINUS SIGN} dense" in view.text("unit")
    view.press("d")
    assert view.view["mode"] == 0 and view.heat() == seen[0]


def test_a_changes_between_one_scale_per_step_and_one_for_all(explored):
    trace = make_trace()
    view = explored(trace, link="step=5&layer=3")
    at = trace.attention.sel(layer=3).values.astype(float)
    assert shows(view.text("high"), at[5].max()) and "this step's own scale" in view.text("unit")
    before = view.heat()
    view.press("a")
    assert shows(view.text("high"), at.max()) and "one scale for all steps" in view.text("unit")
    assert view.heat() != before
    view.press("a")
    assert view.heat() == before


def test_s_masks_sinks_never_silently(explored):
    trace = make_trace()
    view = explored(trace, link="step=4&layer=3")
    medians = np.median(trace.attention.sel(layer=3).values.astype(float), axis=0)
    assert np.flatnonzero(medians > 10 * np.median(medians)).tolist() == [SINK]
    assert not view.page.locator('[data-ref="sinkNote"]').is_visible()
    before = view.heat()
    view.press("s")
    note = view.text("sinkNote")
    assert "1 patch crossed out" in note
    assert shows(note.split("attention there ")[1].rstrip("."), float(trace.attention.sel(layer=3)[4, SINK]))
    assert view.heat() != before
    rest = np.delete(trace.attention.sel(layer=3).values.astype(float), SINK, axis=1)
    assert shows(view.text("high"), rest[4].max())
    view.press("a")
    assert shows(view.text("high"), rest.max())
    view.press("a", "s")
    assert view.heat() == before and not view.page.locator('[data-ref="sinkNote"]').is_visible()


def test_k_marks_exactly_the_dropped_patches(explored):
    trace = make_trace(budget=0.1)
    view = explored(trace, link="step=7&layer=3")
    kept = trace.dataset["kept"].values[7]
    assert f"kept {kept.sum()} of 64 patches (budget 10\N{NO-BREAK SPACE}%)" in view.text("live")
    empty = view.look("e.ref.marks.toDataURL()")
    view.press("k")
    assert view.look("e.ref.marks.toDataURL()") != empty
    assert (view.pixels("marks")[:, 3] > 0).tolist() == (~kept).tolist()


def test_question_mark_opens_help_and_escape_closes_it(explored):
    view = explored(make_trace(), link="step=5")
    view.press("?")
    assert view.page.locator(".vp-help").is_visible()
    view.press("ArrowRight")
    assert view.view["column"] == 5
    view.press("Escape")
    assert not view.page.locator(".vp-help").is_visible()


def test_keys_typed_into_a_field_stay_in_the_field(explored):
    view = explored(make_trace(), link="step=5&layer=3")
    view.page.locator('[data-ref="row0"]').focus()
    view.press("ArrowUp", "a")
    assert (view.view["column"], view.view["layer"], view.view["scale"]) == (5, 3, "step")
    view.page.locator('[data-ref="sinks"]').focus()
    view.press(" ")
    assert view.view["sinks"] == "masked" and view.text("play") == "Play"
