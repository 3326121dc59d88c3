"""Every key and click changes the view as it should, and values shown equal the stored trace. Network off."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made_traces import AWKWARD, SINK, make_pair, make_trace
from PIL import Image

pytestmark = pytest.mark.browser


def shows(text: str, value: float) -> bool:
    """Whether a shown number is `value` rounded to four digits (either way at a tie)."""
    shown = float(text.replace("\N{MINUS SIGN}", "-"))
    unit = 10.0 ** (np.floor(np.log10(abs(value))) - 3) if value else 0.0
    return abs(shown - value) <= 0.5000001 * unit


def colours(image: Image.Image) -> int:
    return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def word_after(text: str, before: str) -> str:
    return text.split(before)[1].split()[0]


# ---------------------------------------------------------------------------------------------- keys


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
    view = explored(make_trace(), link="step=5")
    view.press(" ")
    assert view.text("play") == "Pause"
    view.settled("e.view.column > 7", True)
    view.press(" ")
    stopped = view.view["column"]
    view.page.wait_for_timeout(400)
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


def test_a_changes_between_one_scale_and_one_per_step(explored):
    trace = make_trace()
    view = explored(trace, link="step=5&layer=3")
    at = trace.attention.sel(layer=3).values.astype(float)
    assert shows(view.text("high"), at.max()) and "one scale for all steps" in view.text("unit")
    before = view.heat()
    view.press("a")
    assert shows(view.text("high"), at[5].max()) and "this step's own scale" in view.text("unit")
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
    assert shows(view.text("high"), rest.max())
    view.press("s")
    assert view.heat() == before and not view.page.locator('[data-ref="sinkNote"]').is_visible()


def test_k_marks_exactly_the_dropped_patches(explored):
    trace = make_trace(budget=0.1)
    view = explored(trace, link="step=7&layer=3")
    kept = trace.dataset["kept"].values[7]
    assert f"kept {kept.sum()} of 64 patches (budget 10 %)" in view.text("live")
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
    assert (view.view["column"], view.view["layer"], view.view["scale"]) == (5, 3, "absolute")
    view.page.locator('[data-ref="sinks"]').focus()
    view.press(" ")
    assert view.view["sinks"] == "masked" and view.text("play") == "Play"


# ------------------------------------------------------------------------------------------- pointing


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
    red = view.look("e.strips[0].tokens.map((t) => getComputedStyle(t).backgroundColor.match(/\\d+/g).map(Number))")
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
    area = view.look("e.area")
    view.page.mouse.click(box["x"] + (area["left"] + area["right"]) / 2, box["y"] + 60)
    assert view.view["column"] in (19, 20)
    view.page.locator('[data-ref="slider"]').fill("8")
    assert view.view["column"] == 8
    view.page.locator('[data-ref="forward"]').click()
    assert view.view["column"] == 9
    view.page.locator('[data-ref="back"]').click()
    assert view.view["column"] == 8


# --------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("layer", [2, 5])
@pytest.mark.parametrize("head", [1, 4])
def test_the_page_holds_the_stored_attention_exactly(explored, layer, head):
    trace = make_trace(heads=(1, 4))
    view = explored(trace, link=f"layer={layer}&head={head}")
    stored = trace.attention.sel(layer=layer, head=head).values.astype(np.float32)
    assert np.array_equal(view.look("Array.from(e.plane.attention[0])"), stored.ravel())


def test_values_under_the_pointer_and_in_the_step_line_equal_the_trace(explored):
    trace = make_trace()
    view = explored(trace, link="step=0&layer=3")
    stored, rng = trace.attention.sel(layer=3).values.astype(float), np.random.default_rng(0)
    for step in (0, 7, 39):
        view.page.locator('[data-ref="slider"]').fill(str(step))
        assert trace.tokens[step] in view.text("live")
        assert shows(word_after(view.text("live"), "mass "), float(trace.mass.sel(layer=3)[step]))
        assert shows(word_after(view.text("live"), "probability "), float(np.exp(trace.logprobs[step])))
        for patch in rng.integers(0, 64, 6):
            view.page.mouse.move(*view.point(patch // 8, patch % 8))
            assert view.text("value").startswith(f"Row {patch // 8}, column {patch % 8}: attention ")
            assert shows(word_after(view.text("value"), "attention "), stored[step, patch])


def test_means_over_layers_and_heads_are_those_of_the_trace(explored):
    trace = make_trace(heads=(1, 4))
    view = explored(trace, link="step=6&layer=mean&head=mean")
    shown = np.array(view.look("Array.from(e.plane.attention[0])")).reshape(40, 64)
    assert np.allclose(shown, trace.attention.astype(float).mean(["layer", "head"]).values, rtol=1e-6)
    assert shows(word_after(view.text("live"), "mass "), float(trace.mass[6].astype(float).mean()))


def test_colours_follow_the_values(explored):
    trace = make_trace()
    view = explored(trace, link="step=5&layer=3&scale=step")
    stored = trace.attention.sel(layer=3).values.astype(float)[5]
    colours, level = view.pixels("heat"), np.round(255 * stored / stored.max()) / 255
    assert colours[stored.argmax()].tolist() == [252, 253, 191, 255]  # the last colour of magma, opaque
    assert np.abs(colours[:, 3] / 255 - (0.6 + 0.4 * level)).max() < 0.005


# ---------------------------------------------------------------------------------- dense beside pruned


def test_cursors_are_linked_and_the_difference_is_pruned_minus_dense(explored):
    dense, pruned = make_pair()
    view = explored(dense, pruned, link="step=30&layer=3&trace=difference")
    lines = [line.inner_text() for line in view.page.locator(".vp-now p").all()]
    assert "step 30 of 39" in lines[0] and "step 32 of 41" in lines[1]  # two replaced by one, three put in
    assert dense.tokens[30] == pruned.tokens[32]
    selected = view.page.locator('.vp-strip [aria-selected="true"]')
    assert [s.get_attribute("data-step") for s in selected.all()] == ["30", "32"]
    view.page.mouse.move(*view.point(3, 4))
    value = float(pruned.attention.sel(layer=3)[32, 28]) - float(dense.attention.sel(layer=3)[30, 28])
    assert shows(word_after(view.text("value"), "attention "), value)


def test_first_divergence_is_marked_and_reachable(explored):
    view = explored(*make_pair(), link="step=3&layer=3")
    assert [e.get_attribute("data-step") for e in view.page.locator(".vp-diverges").all()] == ["20"]
    view.page.locator('[data-ref="divergence"]').click()
    assert view.view["column"] == 20
    assert "no token aligned here" in view.text("live")


def test_a_step_without_counterpart_has_no_difference_and_says_so(explored):
    view = explored(*make_pair(), link="step=19&layer=3&trace=difference")
    assert not view.page.locator('[data-ref="veil"]').is_visible()
    view.press("ArrowRight")
    assert view.page.locator('[data-ref="veil"]').is_visible()


def test_moving_in_one_trace_skips_the_other_ones_tokens(explored):
    dense, pruned = make_pair()
    view = explored(dense, pruned, link="step=0&layer=3")
    steps = []
    for _ in range(39):
        view.press("ArrowRight")
        steps.append(view.look("e.data.columns[0][e.view.column]"))
    assert steps == list(range(1, 40))
    view.page.locator(".vp-strip").nth(1).locator('[data-step="20"]').click()
    assert view.view["mode"] == 1 and "step 20 of 41" in view.text("live")


def test_dense_and_pruned_share_the_absolute_scale(explored):
    dense, pruned = make_pair()
    view = explored(dense, pruned, link="step=5&layer=3")
    most = max(float(t.attention.sel(layer=3).max()) for t in (dense, pruned))
    assert shows(view.text("high"), most)
    view.press("d")
    assert shows(view.text("high"), most)


# ---------------------------------------------------------------------------------- images, links, saving


def test_several_images_are_thumbnails_with_one_scale(explored):
    trace = make_trace(images=3)
    view = explored(trace, link="step=5&layer=3&scale=step")
    assert view.page.locator(".vp-thumbs button").count() == 3
    high = view.text("high")
    assert shows(high, float(trace.attention.sel(layer=3)[5].max()))
    photo = view.look("e.ref.photo.toDataURL()")
    view.page.locator(".vp-thumbs button").nth(2).click()
    assert view.look("e.ref.photo.toDataURL()") != photo and view.text("high") == high
    view.page.mouse.move(*view.point(1, 1))
    assert shows(word_after(view.text("value"), "attention "), float(trace.attention.sel(layer=3)[5, 128 + 9]))


def test_a_link_restores_the_exact_view(explored):
    view = explored(*make_pair(heads=(0, 1)), link="step=3&layer=2")
    view.press("Shift+ArrowRight", "ArrowRight", "d", "a", "s", "k", "]", "ArrowUp")
    view.page.locator('[data-ref="map"]').select_option("cividis", force=True)
    view.page.mouse.click(*view.point(4, 4))
    view.page.mouse.move(5, 5)
    view.page.wait_for_timeout(300)
    link, before = view.page.url.split("#")[1], view.view
    pictures = [view.look(f"e.ref.{name}.toDataURL()") for name in ("heat", "marks", "plot")]
    assert f"#{link}" == view.text("link")
    view.open(link)
    assert view.view == before
    assert [view.look(f"e.ref.{name}.toDataURL()") for name in ("heat", "marks", "plot")] == pictures
    assert f"--view '{link}'" in view.text("command")


def test_a_short_link_and_a_wrong_one(explored):
    view = explored(make_trace(), link="step=12&layer=3")
    assert (view.view["column"], view.view["layer"]) == (12, 3)
    view.open("step=4000&layer=x&scale=no&rows=9-2&opacity=1e9")
    assert view.view["column"] == 0 and view.view["scale"] == "absolute" and view.view["region"] is None
    view.page.evaluate("location.hash = 'step=9&layer=5'")
    view.settled("e.shownPlane", "5/mean")
    assert view.view["column"] == 9


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


def test_tokens_are_text_whatever_they_hold(explored):
    trace = make_trace(steps=len(AWKWARD), tokens=AWKWARD)
    view = explored(trace)
    shown = [token.text_content() for token in view.page.locator(".vp-strip [data-step]").all()]
    assert shown == [token.replace("\n", "↵") or "∅" for token in AWKWARD]
    assert view.page.locator("main script").count() == 0


def test_what_was_left_out_is_shown(explored):
    view = explored(make_trace(steps=120, rows=16, cols=16, layers=tuple(range(9))), max_bytes=420_000)
    assert "of 9 layers are in this page" in view.text("notes")
    assert " of 9" in view.page.locator('[data-ref="layer"] option').last.inner_text()


def test_a_step_of_1000_by_1024_draws_within_16_ms(explored):
    view = explored(make_trace(steps=1000, rows=32, cols=32, layers=(3,), pixels=24))
    times = view.page.evaluate(
        """() => {
          const e = document.querySelector('.vp-explorer').explorer, times = [];
          for (let i = 0; i < 200; i++) {
            const start = performance.now();
            e.move(i % 7 ? 1 : 10);
            document.body.getBoundingClientRect();
            e.ref.heat.getContext('2d').getImageData(0, 0, 1, 1);  // waits until the canvas is really drawn
            times.push(performance.now() - start);
          }
          return times;
        }"""
    )
    assert np.median(times) <= 16, f"median {np.median(times):.1f} ms"


def test_screenshot_is_not_blank(explored):
    view = explored(make_trace(), link="step=5&layer=3")
    image = Image.open(io.BytesIO(view.page.screenshot()))
    assert colours(image) > 200
