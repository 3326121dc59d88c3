"""The playground in a running JupyterLab: run, stop, change, keep, as a reader's clicks do it."""

from __future__ import annotations

import pytest
from running_lab import explorer_in, run_first_cell, write

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = 4000  # tokens: minutes, had nobody pressed Stop
OPEN = """import visionpulse_analysis as vpa
play = vpa.playground({model!r}, seed=1, temperature=0, max_new_tokens={long}, out="kept")
play"""
AGAIN = """space = {}
exec(open("kept/1/playground.py").read(), space)
print("the same:", [space[name].data_hash for name in ("dense", "pruned")] == [t.data_hash for t in play.traces])"""


def field(page, name: str):
    return page.locator(f'.vp-playground .widget-text:has(label:text-is("{name}")) input')


def press(page, name: str) -> None:
    page.locator(".vp-playground .widget-button", has_text=name).click()


def table(page) -> list[list[str]]:
    rows = page.locator(".vp-table tr").all()[1:]
    return [[cell.inner_text() for cell in row.locator("td").all()] for row in rows]


def test_run_stop_change_and_keep(lab, new_page, tmp_path, scenes_folder):
    page = new_page(offline=False, height=2400)
    source = OPEN.format(model=str(scenes_folder), long=LONG)
    run_first_cell(page, lab.url(write(tmp_path / "play.ipynb", source, "print('kernel is', 40 + 2)", AGAIN)))
    page.wait_for_selector(".vp-playground", timeout=120_000)
    press(page, "Run")
    page.locator(".vp-playground", has_text=f"of at most {LONG} tokens").wait_for(timeout=60_000)  # the bar moves
    press(page, "Stop")
    page.locator('.vp-playground [role="alert"]', has_text="Stopped.").wait_for(timeout=60_000)
    run_cell(page, 1)
    page.locator(".jp-OutputArea pre", has_text="kernel is 42").wait_for(timeout=60_000)

    field(page, "max_new_tokens").fill("6")
    field(page, "budget").fill("2")
    press(page, "Run")
    page.locator(".vp-error", has_text="budget must be a share of the patches in (0, 1], got 2").wait_for()
    field(page, "budget").fill("0.25")
    press(page, "Run")
    view = explorer_in(page)
    first = table(page)
    assert [row[0] for row in first] == ["dense", "pruned, visionpulse"] and first[1][3] == "25.0 %"
    assert view.look("e.data.traces.length") == 2 and not page.locator(".vp-error").count()

    field(page, "budget").fill("0.5")
    press(page, "Run")
    page.locator(".vp-table td", has_text="50.0 %").wait_for(timeout=60_000)
    assert table(page)[0] == first[0] and page.locator(".vp-explorer").count() == 1
    press(page, "Keep")
    page.locator(".vp-code", has_text="vpa.decode(").wait_for(timeout=60_000)
    run_cell(page, 2)
    page.locator(".jp-OutputArea pre", has_text="the same: True").wait_for(timeout=60_000)


def run_cell(page, number: int) -> None:
    page.locator(".jp-Cell .cm-content").nth(number).click()
    page.keyboard.press("Shift+Enter")
