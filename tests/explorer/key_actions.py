"""Every key."""

from __future__ import annotations

import numpy as np
from actions import action, sinks
from open_page import shows


@action
def arrows_go_a_step_and_with_shift_ten(view, traces):
    first = view.heat()
    for key, step in (("ArrowRight", 16), ("ArrowLeft", 15), ("Shift+ArrowLeft", 5), ("Shift+ArrowRight", 15)):
        view.press(key)
        assert f"step {step} of 39" in view.text("live")
    assert view.heat() == first
    view.press("ArrowRight")
    assert view.heat() != first


@action
def home_and_end_stop_at_the_ends(view, traces):
    view.press("End")
    assert "step 39 of 39" in view.text("live")
    view.press("ArrowRight")
    assert "step 39 of 39" in view.text("live")
    view.press("Home")
    view.press("Shift+ArrowLeft")
    assert "step 0 of 39" in view.text("live")


@action
def up_and_down_choose_the_layer_and_end_at_the_mean(view, traces):
    first = view.heat()
    view.press("ArrowUp")
    view.settled("e.shownPlane", "5/1/attention")
    assert view.heat() != first and view.page.locator('[data-ref="layer"]').input_value() == "5"
    view.press("ArrowUp", "ArrowUp")
    view.settled("e.shownPlane", "mean/1/attention")
    view.press("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown")
    view.settled("e.shownPlane", "2/1/attention")


@action
def brackets_choose_the_head_also_where_they_need_other_keys(view, traces):
    first = view.heat()
    view.press("]")
    view.settled("e.shownPlane", "3/4/attention")
    assert view.heat() != first and view.page.locator('[data-ref="head"]').input_value() == "4"
    # As a German keyboard types it: AltGr on Windows, Alt on a Mac.
    for modifiers in ("ctrlKey: true, altKey: true", "altKey: true"):
        view.look(f"e.root.dispatchEvent(new KeyboardEvent('keydown', {{ key: ']', bubbles: true, {modifiers} }}))")
        view.settled("e.shownPlane", "3/mean/attention")
        view.press("[")
        view.settled("e.shownPlane", "3/4/attention")
    view.look("e.root.dispatchEvent(new KeyboardEvent('keydown', { key: 'a', bubbles: true, ctrlKey: true }))")
    assert view.view["scale"] == "step"  # Ctrl+A is the browser's


@action
def space_plays_and_pauses(view, traces):
    view.press(" ")
    assert view.text("play") == "Pause" and view.look("e.ref.live.getAttribute('aria-live')") == "off"
    view.settled("e.view.column > 16", True)
    if view.text("play") == "Pause":  # a slow machine may have come to the end
        view.press(" ")
    assert view.text("play") == "Play" and view.look("e.ref.live.getAttribute('aria-live')") == "polite"


@action
def d_goes_through_dense_pruned_and_difference(view, traces):
    seen = [view.heat()]
    for mode in (1, 2):
        view.press("d")
        assert view.view["mode"] == mode
        seen.append(view.heat())
    assert len({*seen}) == 3 and "pruned \N{MINUS SIGN} dense" in view.text("unit")
    view.press("d")
    assert view.view["mode"] == 0 and view.heat() == seen[0]
    view.press("d", "d")


@action
def p_puts_the_next_pruned_trace_beside_the_first(view, traces):
    view.press("p", "d")
    assert view.view["beside"] == 2 and "step 11 of 35" in view.text("live")
    view.press("Shift+P", "Shift+P")
    assert view.view["beside"] == 2


@action
def a_changes_between_one_scale_per_step_and_one_for_all(view, traces):
    before = view.heat()
    view.press("a")
    assert "one scale for all steps" in view.text("unit") and view.heat() != before
    view.press("a")
    assert "this step's own scale" in view.text("unit") and view.heat() == before
    view.press("a")


@action
def s_masks_sinks_never_silently(view, traces):
    before, note = view.heat(), view.page.locator('[data-ref="sinkNote"]')
    masked = sinks(traces, view.view)
    assert masked.sum() == 1 and not note.is_visible()
    view.press("s")
    told = view.text("sinkNote")
    assert "1 patch crossed out" in told
    held = float(traces[0].attention.sel(layer=3, head=1)[15, int(masked.argmax())])
    assert shows(told.split("attention there ")[1].rstrip("."), held)
    assert view.heat() != before
    view.press("s")
    assert view.heat() == before and not note.is_visible()
    view.press("s")


@action
def k_marks_exactly_the_dropped_patches(view, traces):
    assert not view.pixels("marks")[:, 3].any()
    view.press("d", "k")
    kept = traces[1].kept.values[15, :64]
    assert (view.pixels("marks")[:, 3] > 0).tolist() == (~kept).tolist()
    row, col = divmod(int(np.flatnonzero(~kept)[0]), 8)
    view.page.mouse.move(*view.point(row, col))
    assert view.text("value").endswith(", dropped")


@action
def question_mark_opens_help_where_other_keys_rest(view, traces):
    view.press("?")
    assert view.page.locator(".vp-help").is_visible()
    view.press("ArrowRight")
    assert "step 15 of 39" in view.text("live")
    view.press("Escape")
    assert not view.page.locator(".vp-help").is_visible()


@action
def keys_typed_into_a_field_stay_in_the_field(view, traces):
    view.page.locator('[data-ref="row0"]').focus()
    view.press("ArrowUp", "a")
    now = view.view
    assert (now["layer"], now["scale"]) == (3, "step") and "step 15 of 39" in view.text("live")
    view.page.locator('[data-ref="sinks"]').focus()
    view.press(" ")
    assert view.view["sinks"] == "masked" and view.text("play") == "Play"
