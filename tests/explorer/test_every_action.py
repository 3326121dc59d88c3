"""Every key, click and control does what it says, in the offline page and in a running JupyterLab."""

from __future__ import annotations

import key_actions  # noqa: F401 (enters its actions into the list)
import pointer_actions  # noqa: F401
import pytest
from actions import ACTIONS, START, agrees

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_every_action(everywhere, traces, action):
    everywhere.show(START)
    action(everywhere, traces)
    agrees(everywhere, traces)
    assert everywhere.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_no_key_went_elsewhere(everywhere, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    everywhere.show(f"{START}&trace=difference&kept=shown&sinks=masked&rows=1-2&cols=1-2")
    everywhere.look(f"(e.theme = '{theme}', e.paintTheme())")
    # JupyterLab clips its panels, and axe takes every text in them for hidden.
    unclip = "(() => {{ for (let at = e.root; (at = at.parentElement); ) at.style.overflow = '{}'; }})()"
    everywhere.look(unclip.format("visible"))
    found = axe.run(everywhere.page, context=".vp-explorer").response
    everywhere.look(unclip.format(""))
    everywhere.look("(e.theme = 'auto', e.paintTheme())")
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []
    contrast = [node["html"] for rule in found["passes"] if rule["id"] == "color-contrast" for node in rule["nodes"]]
    assert any("vp-brand" in html for html in contrast)
    assert everywhere.page.locator(".jp-Cell").count() in (0, 2)  # JupyterLab took no key for itself
    assert everywhere.complaints == []
