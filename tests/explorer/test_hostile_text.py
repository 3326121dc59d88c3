"""Text of users, models and files stays text wherever the page shows it, and leaves what stands beside it alone."""

from __future__ import annotations

import pytest
from actions import seen
from made_traces import AWKWARD, make_trace

pytestmark = pytest.mark.browser
EVIL = """<img src=x onerror="window.owned = 1">'"`$(touch x)`&quot;</script><script>window.owned = 1</script>"""


def hostile(**options):
    trace = make_trace(tokens=[*AWKWARD, EVIL, "</think>", EVIL], steps=len(AWKWARD) + 3, **options)
    pruner = None if "budget" not in options else {"name": f"{EVIL} {options['budget']}"}
    named = dict.fromkeys(("id", "question", "model", "text"), EVIL)
    return trace.with_meta({**trace.meta, **named, "text": f"</think>{EVIL}", "pruner": pruner})


def test_every_text_of_the_page_is_text(explored):
    first, *pruned = hostile(), hostile(budget=0.1, seed=1), hostile(budget=0.3, seed=2)
    view = explored(first, *pruned, link=f"step={len(AWKWARD)}&layer=3&rows=1-2&cols=1-2", store=f"{EVIL} runs")
    assert view.text("question") == EVIL
    assert f"Model: {EVIL}" in view.text("about") and f"answer “{EVIL}”" in view.text("about")
    options = view.page.locator('[data-ref="beside"] option').all_text_contents()
    assert options == [f"{EVIL} 0.1", f"{EVIL} 0.3"]
    assert view.page.locator(".vp-now b").first.inner_text() == EVIL
    assert EVIL in view.page.locator('[data-ref="slider"]').get_attribute("aria-valuetext")
    assert view.page.locator(".vp-strip").nth(1).get_attribute("aria-label") == f"Pruned tokens, {EVIL} 0.1"
    assert view.page.title() == f"{EVIL} · VisionPulse explorer"
    with view.page.expect_download() as download:
        view.page.locator('[data-ref="savePng"]').click()
    assert not set("<>'\"`$&;/ ") & set(download.value.suggested_filename)
    view.press("p", "d", "k")
    assert view.look("[window.owned, e.root.querySelectorAll('script, img, iframe').length]") == [None, 0]


@pytest.mark.parametrize("width", [390, 1280])
def test_no_text_turns_around_or_pushes_away_what_stands_beside_it(explored, width):
    view = explored(hostile(), link=f"step={len(AWKWARD) - 1}&layer=3&rows=1-2&cols=1-2", width=width)
    assert view.look("document.documentElement.scrollWidth") <= width
    for step, token in enumerate(AWKWARD):
        view.look(f"e.preview({step})")
        shown = seen(token) if len(token) < 24 else seen(token)[:24] + "…"
        assert view.text("value").startswith(
            f"Step {step} “\N{FIRST STRONG ISOLATE}{shown}\N{POP DIRECTIONAL ISOLATE}”: "
        )
    for button in view.page.locator(".vp-peaks button").all():
        isolated = button.inner_text().split("\N{FIRST STRONG ISOLATE}")[1]
        assert isolated.count("\N{POP DIRECTIONAL ISOLATE}") == 1 and len(isolated) < 40


def test_a_question_from_right_to_left_runs_so(explored):
    trace = make_trace()
    view = explored(trace.with_meta({**trace.meta, "question": "أين الدائرة الحمراء ؟"}))
    assert view.look("getComputedStyle(e.ref.question).direction") == "rtl"
