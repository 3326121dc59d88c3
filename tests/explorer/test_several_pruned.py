"""Dense beside one of several pruned traces, and a selector for which."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from made_traces import make_pair, make_trace
from open_page import shows, word_after

from visionpulse_analysis.explorer import explore, page
from visionpulse_analysis.explorer.figure import draw_view
from visionpulse_analysis.explorer.pairing import labels
from visionpulse_analysis.explorer.payload import pack


@pytest.fixture(scope="module")
def four():
    """Dense; pruned, parting at step 20 and longer; pruned, parting at 10 and shorter; pruned, with the same tokens."""
    dense, longer = make_pair()
    words = [*dense.tokens[:10], "hmm", *dense.tokens[15:]]
    shorter = make_trace(steps=len(words), tokens=words, seed=2, budget=0.3)
    return dense, longer, shorter, make_trace(tokens=dense.tokens, seed=3, budget=0.5)


def pruned_by(*pruners):
    return [SimpleNamespace(meta={"pruner": pruner}) for pruner in pruners]


def test_pruners_of_one_name_are_told_apart_by_what_differs():
    fast = {"name": "fastv", "budget": 0.1, "layer": 2}
    several = pruned_by(None, fast, {**fast, "budget": 0.2}, {"name": "vtw", "layer": 5}, fast)
    assert labels(several) == ["", "fastv(budget=0.1)", "fastv(budget=0.2)", "vtw", "fastv(budget=0.1) (2)"]
    both = [{"name": f"divprune(budget={b}) | visionpulse(layer=2, shares=(1, {b}))"} for b in (0.1, 0.2)]
    told = [f"divprune(budget={b}) | visionpulse(shares=(1, {b}))" for b in (0.1, 0.2)]
    assert labels(pruned_by(None, *both, fast)) == ["", *told, "fastv"]
    assert labels(pruned_by(None, both[0], fast)) == ["", "divprune | visionpulse", "fastv"]
    assert labels(pruned_by(None, fast)) == ["", ""]
    assert labels(pruned_by(None, "imported", None)) == ["", "no pruner", "no pruner (2)"]


def test_each_trace_is_aligned_with_the_first(four):
    packed = pack(*four, store="runs")
    assert [found["divergence"] for found in packed["alignments"]] == [20, 10, None]
    assert packed["about"][3].startswith("Pruned (visionpulse(budget=0.3)): 36 steps")
    assert pack(*four[:2])["about"][2].startswith("Pruned (visionpulse): 42 steps")


def test_the_page_stays_small():
    sizes = {"steps": 60, "rows": 16, "cols": 16, "layers": tuple(range(6))}
    traces = [make_trace(budget=budget, seed=n, **sizes) for n, budget in enumerate((None, 0.1, 0.3, 0.5))]
    packed = pack(*traces, max_bytes=500_000)
    assert 1 < len(packed["layers"]) < 6 and "layers are in this page" in packed["notes"][0]
    assert len(page.page(packed)) < 500_000


def test_a_view_of_a_trace_that_is_not_there_is_refused(four):
    with pytest.raises(ValueError, match="beside=4 is out of range: 3 traces"):
        explore(*four, view="beside=4")
    with pytest.raises(ValueError, match="beside=2 is out of range"):
        draw_view(*four[:2], view="beside=2")
    with pytest.raises(ValueError, match="beside='0', expected a whole number from 1"):
        explore(*four, view="beside=0")
    with pytest.raises(ValueError, match="step 38 is out of range"):
        explore(*four, view="beside=2&pruned_step=38")
    explore(*four, view="beside=1&pruned_step=38")


def test_the_figure_shows_the_same_trace(four):
    drawn = draw_view(*four, view="step=30&layer=3&trace=pruned&kept=shown&beside=3")
    alone = draw_view(four[0], four[3], view="step=30&layer=3&trace=pruned&kept=shown")
    names = [[line.get_label() for line in fig.axes[2].lines][:2] for fig in (drawn, alone)]
    assert names == [["Dense", "Pruned, visionpulse(budget=0.5)"], ["Dense", "Pruned"]]
    shown, expected = (fig.axes[1].collections[0].get_paths() for fig in (drawn, alone))
    assert len(shown) == len(expected) == int((~four[3].kept.values[30]).sum())


@pytest.mark.browser
def test_another_trace_takes_its_place_at_the_same_step(explored, four):
    dense, _, shorter, _ = four
    view = explored(*four, link="step=30&layer=3&trace=difference")
    chosen, status = view.page.locator('[data-ref="beside"]'), view.page.locator('[data-ref="about"] [role="status"]')
    assert chosen.locator("option").all_inner_texts() == [f"visionpulse(budget={b})" for b in (0.1, 0.3, 0.5)]
    view.page.locator(".vp-strip").nth(1).focus()
    view.press("p")
    assert chosen.input_value() == "2" and "Pruned (visionpulse(budget=0.3)): 36 steps" in status.inner_text()
    assert view.look("document.activeElement.getAttribute('aria-label')") == "Pruned tokens, visionpulse(budget=0.3)"
    lines = [line.inner_text() for line in view.page.locator(".vp-now p").all()]
    assert "step 30 of 39" in lines[0] and "step 26 of 35" in lines[1] and "budget 30\N{NO-BREAK SPACE}%" in lines[1]
    assert [e.get_attribute("data-step") for e in view.page.locator(".vp-diverges").all()] == ["10"]
    view.page.mouse.move(*view.point(3, 4))
    value = float(shorter.attention.sel(layer=3)[26, 28]) - float(dense.attention.sel(layer=3)[30, 28])
    assert shows(word_after(view.text("value"), "attention "), value)


@pytest.mark.browser
def test_p_goes_around_and_with_one_pruned_trace_there_is_no_choice(explored, four):
    view = explored(*four, link="step=12&layer=3")
    seen = [view.view["beside"]]
    for key in ("p", "p", "p", "Shift+P"):
        view.press(key)
        seen.append(view.view["beside"])
    assert seen == [1, 2, 3, 1, 3]
    assert not view.page.locator('[data-ref="divergence"]').is_visible()  # the same tokens
    view = explored(*four[:2], link="step=12&layer=3")
    view.press("p")
    assert view.view["beside"] == 1 and not view.page.locator('[data-ref="beside"]').is_visible()


@pytest.mark.browser
def test_the_link_restores_it(explored, four):
    view = explored(*four, link="step=3&layer=3&trace=pruned")
    view.page.locator('[data-ref="beside"]').select_option("2")
    view.press("End", "k")
    asked = ["step=39", "beside=2", "kept"]
    view.page.wait_for_function("asked => asked.every((part) => location.hash.includes(part))", arg=asked)
    link, before = view.page.url.split("#")[1], view.view
    heat, marks, plot = (view.look(f"e.ref.{name}.toDataURL()") for name in ("heat", "marks", "plot"))
    assert "beside=2" in link and "view='step=39" in view.text("command")
    view.open(link)
    assert view.view == before
    assert [view.look(f"e.ref.{name}.toDataURL()") for name in ("heat", "marks", "plot")] == [heat, marks, plot]
    view.open("pruned_step=35&layer=3&beside=2")
    assert "step 35 of 35" in view.text("live")
    view.page.evaluate("location.hash = 'pruned_step=10&layer=3&trace=pruned&beside=2'")
    view.settled("e.data.columns.map((steps) => steps[e.view.column])", [-1, 10])  # a token that dense does not have


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_selector_is_readable_and_fits(explored, four, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = explored(*four, link="step=12&layer=3&beside=2", width=width, dark=width == 390)
    assert view.look("document.documentElement.scrollWidth") <= width
    found = [v for v in axe.run(view.page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
    assert view.page.get_by_label("Pruned trace").input_value() == "2"
