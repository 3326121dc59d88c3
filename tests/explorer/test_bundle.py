"""The modules of the page: short, joined as they are, and true modules without being joined."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from made_traces import make_pair
from open_page import Explored

from visionpulse_analysis.explorer import page
from visionpulse_analysis.explorer.payload import pack

FOLDER = resources.files("visionpulse_analysis.explorer").joinpath("script")
PLACE = "http://unjoined.invalid"
MODULES = sorted(file.name for file in FOLDER.iterdir() if file.name.endswith(".js"))


def test_every_module_is_joined_once_after_what_it_imports():
    script, seen = page.script(), []
    assert len(MODULES) > 10
    for name in re.findall(r"^const (\w+)_js = \(\(\) => {$", script, re.MULTILINE):
        assert {needed for _, needed in page.IMPORT.findall(page.asset(f"{name}.js"))} <= set(seen)
        seen.append(name)
    assert sorted([*(f"{name}.js" for name in seen), "main.js"]) == MODULES


def test_nothing_of_module_syntax_is_left_but_the_ways_in():
    left = re.findall(r"^(?:import|export)\b.*$", page.script(), re.MULTILINE)
    assert left == ["export function mountPage(root, payload, link) {", "export default { render };"]


def test_a_module_keeps_its_names_to_itself():
    joined = page._scoped("some", "const PRIVATE = 1;\nexport const shown = PRIVATE;\nexport class Thing {}\n")
    assert joined.startswith("const some_js = (() => {\nconst PRIVATE = 1;\nconst shown = PRIVATE;")
    assert "return { shown, Thing };" in joined


@pytest.mark.browser
def test_the_files_work_unjoined_as_the_browser_loads_modules(new_page, tmp_path):
    """So what is read in script/ is what runs: every name that is used is imported or defined."""
    view = Explored(new_page(answers=PLACE), tmp_path)
    html = page.page(pack(*make_pair()), "step=5&layer=3")
    html = html.replace(page.script(), 'import { mountPage } from "./main.js";')
    html = html.replace("script-src 'unsafe-inline'", f"script-src 'unsafe-inline' {PLACE}")
    types = {"js": "text/javascript", "html": "text/html"}

    def answer(route) -> None:
        name = route.request.url.rpartition("/")[2].partition("#")[0]
        text = html if name == "page.html" else page.asset(name)
        route.fulfill(body=text, content_type=f"{types[name.rpartition('.')[2]]}; charset=utf-8")

    view.page.route(f"{PLACE}/**", answer)
    view.url = f"{PLACE}/page.html"
    view.open()
    before = view.heat()
    view.press("ArrowRight", "d", "s", "k", "ArrowUp")
    view.page.mouse.click(*view.point(2, 3))
    assert view.heat() != before and view.view["region"] == [2, 3, 2, 3]
    with view.page.expect_download():
        view.page.locator('[data-ref="savePng"]').click()
