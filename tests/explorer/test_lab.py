"""The widget in a running JupyterLab, and notebook 06 as `make figures` leaves it behind."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from open_page import Explored

from visionpulse_analysis import notebooks

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SHOW = """from made_traces import make_pair
import visionpulse_analysis as vpa
widget = vpa.explore(*make_pair(steps=400, heads=(1, 4)), view="step=5&layer=3")
widget"""
ASK = "print('view is', widget.view)"


class Lab(NamedTuple):
    """A running server."""

    port: int
    token: str
    root: Path

    def url(self, notebook: Path) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook.relative_to(self.root)}?token={self.token}&reset"

    def ask(self, what: str) -> list:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/{what}?token={self.token}", timeout=5) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port of this machine, over the folders of all tests, with the tests' own signatures."""
    home, root, token = tmp_path_factory.mktemp("home"), tmp_path_factory.getbasetemp(), secrets.token_hex(16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME")}
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **own, "PYTHONPATH": here, "HOME": str(home)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [
        f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
    ]
    log = (home / "log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                Lab(port, token, root).ask("kernels")
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"JupyterLab did not start:\n{(home / 'log').read_text()}") from None
                time.sleep(0.3)
        yield Lab(port, token, root)
    finally:
        server.terminate()
        try:
            server.wait(60)  # it ends its kernels first
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def write(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def explorer_in(page) -> Explored:
    page.wait_for_selector(".jp-OutputArea .vp-explorer[data-ready]", timeout=120_000)
    return Explored(page, Path("/"))


def interact(view: Explored) -> None:
    """The same keys and clicks as in the offline page."""
    view.page.locator(".vp-brand").click()  # the keys go to the widget, not to the notebook
    first = view.heat()
    view.press("ArrowRight", "Shift+ArrowRight")
    assert "step 16 of 399" in view.text("live") and view.heat() != first
    view.press("ArrowUp")
    view.settled("e.shownPlane", "5/mean")
    view.press("[")
    view.settled("e.shownPlane", "5/4")
    view.press("]")
    view.settled("e.shownPlane", "5/mean")
    view.press(" ")
    view.settled("e.view.column > 16", True)
    view.press(" ")
    assert view.text("play") == "Play"
    view.press("d", "d", "a", "s", "k")
    changed = {name: view.view[name] for name in ("mode", "scale", "sinks", "kept")}
    assert changed == {"mode": 2, "scale": "absolute", "sinks": "masked", "kept": True}
    view.page.locator('[data-step="9"]').first.click()
    assert view.view["column"] == 9
    view.page.mouse.move(*view.point(1, 1))
    view.page.mouse.down()
    view.page.mouse.move(*view.point(3, 4), steps=3)
    view.page.mouse.up()
    assert view.view["region"] == [1, 1, 3, 4]
    view.page.mouse.click(*view.point(2, 3))
    assert view.view["region"] == [2, 3, 2, 3]
    view.press("?")
    assert view.page.locator(".vp-help").is_visible()
    view.press("Escape")
    assert view.page.locator(".jp-Cell").count() == 2  # JupyterLab took none of the keys for itself


def test_the_widget_works_and_tells_python_its_view(lab, tmp_path, new_page):
    page = new_page(offline=False, height=1400)
    page.goto(lab.url(write(tmp_path / "live.ipynb", SHOW, ASK)))
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=120_000)  # else nothing is run
    page.locator(".jp-Cell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    view = explorer_in(page)
    interact(view)
    link = "step=9&layer=5&head=mean&trace=difference&scale=absolute&sinks=masked&kept=shown&rows=2-2&cols=3-3"
    view.settled("e.ref.link.textContent", f"#{link}")  # written as it is sent to Python
    page.locator(".jp-Cell").last.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    printed = page.locator(".jp-Cell .jp-OutputArea pre", has_text="view is")
    printed.wait_for(timeout=60_000)
    assert link in printed.inner_text()
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # as JupyterLab does for a dark theme
    page.wait_for_selector('.vp-explorer[data-theme="dark"]')


def test_the_executed_copy_shows_the_explorer_where_the_reader_wants_no_kernel(lab, executed, tmp_path, new_page):
    copy = tmp_path / "copy.ipynb"  # of its own: JupyterLab joins whatever session it finds for a path
    notebook = nbformat.read(executed.path, as_version=4)
    for name in ("kernelspec", "language_info"):  # without them JupyterLab asks which kernel to start
        del notebook.metadata[name]
    nbformat.write(notebook, copy)
    notebooks.trust(copy)
    page = new_page(offline=False, height=5000)  # JupyterLab renders only the cells in sight
    page.goto(lab.url(copy))
    page.locator(".jp-Dialog button", has_text="No Kernel").click(timeout=120_000)
    page.locator(".jp-Toolbar-kernelName", has_text="No Kernel").wait_for(timeout=60_000)
    view = explorer_in(page)
    mass = view.look("[...e.data.mass(0, 'mean', 'mean')]")
    assert view.look("e.data.traces.length") == 2 and view.view["column"] == mass.index(max(mass))
    page.locator(".jp-OutputArea .vp-brand").first.click()
    view.press("Home", "ArrowRight")
    assert "step 1 of" in view.text("live")
    assert copy.name not in {session["name"] for session in lab.ask("sessions")}
