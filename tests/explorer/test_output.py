"""What a cell shows: the widget to a reader, everything at once where a runner executes the notebook."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from made_traces import make_trace

from visionpulse_analysis import explorer as widget
from visionpulse_analysis.explorer import explore

WIDGET = "application/vnd.jupyter.widget-view+json"


def bundle(explorer: widget.Explorer) -> dict:
    found = explorer._repr_mimebundle_()
    assert found is not None
    return found[0]


@pytest.mark.parametrize("answers", [True, False], ids=["reader", "runner"])
def test_only_where_somebody_could_answer_the_widget_is_shown(monkeypatch, answers):
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": answers}})
    monkeypatch.setattr(widget, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    data = bundle(explore(make_trace(), view="step=7"))
    assert (WIDGET in data, "text/html" in data) == (answers, not answers)


def test_without_a_kernel_it_is_the_widget():
    assert WIDGET in bundle(explore(make_trace()))


@pytest.mark.browser
def test_outputs_of_one_notebook_live_beside_each_other(new_page, tmp_path):
    outputs = [str(explore(make_trace(seed=n), view=f"step={n}").inline().data) for n in (3, 8)]
    path = tmp_path / "outputs.html"
    path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Two</title>{"".join(outputs)}</html>')
    page = new_page()
    page.goto(path.as_uri())
    shown = page.locator('.vp-explorer[data-ready] [data-ref="live"]')
    shown.nth(1).wait_for()
    assert ["step 3 of" in shown.nth(0).inner_text(), "step 8 of" in shown.nth(1).inner_text()] == [True, True]
    page.locator(".vp-brand").nth(1).click()
    page.keyboard.press("ArrowRight")
    assert ["step 3 of" in shown.nth(0).inner_text(), "step 9 of" in shown.nth(1).inner_text()] == [True, True]
    assert "once this notebook is trusted" not in page.locator("body").inner_text()
