"""The notebook runs, and its executed copy carries the widget with everything it shows."""

from __future__ import annotations

import json

import nbformat
import pytest


@pytest.mark.slow
def test_the_executed_notebook_holds_the_widget_the_page_and_the_figure(executed):
    out = executed.path.parents[1]
    notebook = nbformat.read(executed.path, as_version=4)
    states = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    (payload,) = (json.loads(s["state"]["payload"]) for s in states.values() if "payload" in s["state"])
    assert len(payload["traces"]) == 2
    shown = [o.data for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert any(data.get("application/vnd.jupyter.widget-view+json", {}).get("model_id") in states for data in shown)
    assert any("<iframe" in data.get("text/html", "") for data in shown)
    assert executed.path.stat().st_size < 1_500_000
    assert (out / "06_explorer.html").stat().st_size < 3_000_000
    assert all((out / f"06_explorer.{ending}").exists() for ending in ("png", "pdf", "svg"))
