"""The notebook runs, and its executed copy carries everything the explorer shows."""

from __future__ import annotations

import nbformat
import pytest


@pytest.mark.slow
def test_the_executed_notebook_holds_the_explorer_the_page_and_the_figure(fast):
    executed = fast("06")
    out = executed.parents[1]
    notebook = nbformat.read(executed, as_version=4)
    shown = [o.data for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    (explorer,) = (data["text/html"] for data in shown if 'class="vp-brand"' in data.get("text/html", ""))
    assert "data:image/png;base64," in explorer and "http" not in explorer
    assert not any("application/vnd.jupyter.widget-view+json" in data for data in shown)  # needs a kernel
    assert executed.stat().st_size < 1_500_000
    assert (out / "06_explorer.html").stat().st_size < 3_000_000
    assert all((out / f"06_explorer.{ending}").exists() for ending in ("png", "pdf", "svg"))
