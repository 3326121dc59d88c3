"""The notebook runs, and its executed copy carries the widget with everything it shows."""

from __future__ import annotations

import json

import nbformat
import pytest

from visionpulse_analysis import notebooks


@pytest.mark.slow
def test_the_executed_notebook_holds_the_widget_the_page_and_the_figure(tmp_path):
    done = notebooks.run("06_explorer", {"seed": 1}, out=tmp_path, fast=True)
    executed = nbformat.read(done.path, as_version=4)
    states = executed.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    (payload,) = (json.loads(s["state"]["payload"]) for s in states.values() if "payload" in s["state"])
    assert len(payload["traces"]) == 2
    shown = [o.data for cell in executed.cells for o in cell.get("outputs", []) if "data" in o]
    assert any(data.get("application/vnd.jupyter.widget-view+json", {}).get("model_id") in states for data in shown)
    assert (tmp_path / "06_explorer.html").stat().st_size < 3_000_000
    assert all((tmp_path / f"06_explorer.{ending}").exists() for ending in ("png", "pdf", "svg"))
