"""The widget in a running JupyterLab, and notebook 06 as `make figures` leaves it behind."""

from __future__ import annotations

import nbformat
import pytest
from actions import START
from running_lab import explorer_in

from visionpulse_analysis.cli.notebooks.execution import trust

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("everywhere", ["lab"], indirect=True)
def test_the_widget_tells_python_its_view_and_follows_the_theme(everywhere):
    page = everywhere.page
    everywhere.show(START)
    everywhere.press("d", "k", "Shift+ArrowLeft")
    link = "step=5&layer=3&head=1&trace=pruned&kept=shown"
    everywhere.settled("e.ref.link.textContent", f"#{link}")  # written as it is sent to Python
    page.locator(".jp-Cell").last.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    printed = page.locator(".jp-Cell .jp-OutputArea pre", has_text="view is")
    printed.wait_for(timeout=60_000)
    assert link in printed.inner_text()
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # as JupyterLab does for a dark theme
    page.wait_for_selector('.vp-explorer[data-theme="dark"]')
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    page.wait_for_selector('.vp-explorer[data-theme="light"]')
    assert everywhere.complaints == []


def test_the_executed_copy_shows_the_explorer_where_the_reader_wants_no_kernel(lab, fast, tmp_path, new_page):
    copy = tmp_path / "copy.ipynb"  # of its own: JupyterLab joins whatever session it finds for a path
    notebook = nbformat.read(fast("06"), as_version=4)
    for name in ("kernelspec", "language_info"):  # without them JupyterLab asks which kernel to start
        del notebook.metadata[name]
    nbformat.write(notebook, copy)
    trust(copy)
    page = new_page(offline=False, height=5000)  # JupyterLab renders only the cells in sight
    page.goto(lab.url(copy))
    page.locator(".jp-Dialog button", has_text="No Kernel").click(timeout=120_000)
    page.locator(".jp-Toolbar-kernelName", has_text="No Kernel").wait_for(timeout=60_000)
    view = explorer_in(page)
    peaks = view.look("e.data.columns[0].map((step, column) => e.data.peak(e.data.values(e.plane, 0, column)))")
    assert view.look("e.data.traces.length") == 2 and view.view["column"] == peaks.index(max(peaks))
    page.locator(".jp-OutputArea .vp-brand").first.click()
    view.press("Home", "ArrowRight")
    assert "step 1 of" in view.text("live")
    assert copy.name not in {session["name"] for session in lab.ask("sessions")}
