"""Dense beside pruned: aligned by token, with linked cursors."""

from __future__ import annotations

import pytest
from made_traces import make_pair, make_trace
from open_page import shows, word_after

from visionpulse_analysis.explorer.figure import draw_view

pytestmark = pytest.mark.browser


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
    assert view.text("value").endswith(" of the softmax row (pruned \N{MINUS SIGN} dense), dropped")
    assert view.text("unit").startswith("pruned \N{MINUS SIGN} dense attention, share of the softmax row")


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
    view = explored(dense, pruned, link="step=5&layer=3&scale=absolute")
    most = max(float(t.attention.sel(layer=3).max()) for t in (dense, pruned))
    assert shows(view.text("high"), most)
    view.press("d")
    assert shows(view.text("high"), most)


def parting_early():
    """Two traces that share their first three tokens and nothing else."""
    dense = make_trace(steps=30)
    return dense, make_trace(tokens=[*dense.tokens[:3], *(f"w{n}" for n in range(20))], steps=23, seed=1, budget=0.1)


def test_traces_that_part_early_share_the_steps_and_not_halves_of_an_axis(explored):
    dense, pruned = parting_early()
    view = explored(dense, pruned, link="step=12&layer=3&kept=shown")
    assert view.look("e.data.last") == 29 and view.look("e.data.divergence") == 3
    lines = [line.inner_text() for line in view.page.locator(".vp-now p").all()]
    assert "step 12 of 29" in lines[0] and "step 12 of 22" in lines[1] and "w9" in lines[1]
    assert view.page.locator(".vp-alone").count() == 27 + 20
    view.show("step=2&layer=3&trace=difference")
    assert not view.page.locator('[data-ref="veil"]').is_visible()
    view.press("ArrowRight")  # the same step, and another token
    assert view.page.locator('[data-ref="veil"]').is_visible()
    view.show("step=25&layer=3")
    assert "no token" in view.page.locator(".vp-now p").nth(1).inner_text()
    drawn = draw_view(dense, pruned, view="step=12&layer=3").axes[1]
    assert "share too few" in drawn.get_xlabel() and drawn.get_xlim()[1] < 31
    with pytest.raises(ValueError, match="no difference"):
        draw_view(dense, pruned, view="step=12&layer=3&trace=difference")
