"""Dense beside pruned: aligned by token, with linked cursors."""

from __future__ import annotations

import pytest
from made_traces import make_pair
from open_page import shows, word_after

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
