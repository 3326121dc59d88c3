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


def test_axe_finds_nothing_serious_and_no_key_went_elsewhere(everywhere):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    everywhere.show(f"{START}&trace=difference&kept=shown&sinks=masked&rows=1-2&cols=1-2")
    found = axe.run(everywhere.page, context=".vp-explorer").response
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}
    assert everywhere.page.locator(".jp-Cell").count() in (0, 2)  # JupyterLab took no key for itself
    assert everywhere.complaints == []
