"""The widget in a running JupyterLab: with its kernel, and without one after papermill."""

from __future__ import annotations

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
import papermill
import pytest
from nbformat.sign import NotebookNotary
from open_page import Explored

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SHOW = """from made_traces import make_pair
import visionpulse_analysis as vpa
widget = vpa.explore(*make_pair(), view="step=5&layer=3")
widget"""
ASK = "print('view is', widget.view)"


class Lab(NamedTuple):
    """A running server."""

    address: str
    data: Path

    def url(self, notebook: str) -> str:
        return self.address.format(notebook)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def lab(notebooks, tmp_path_factory):
    """JupyterLab on a free port of this machine."""
    home, token = tmp_path_factory.mktemp("home"), secrets.token_hex(16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **own, "PYTHONPATH": str(Path(__file__).parent), "HOME": str(home)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [
        f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={notebooks}",
    ]
    log = (home / "log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"JupyterLab did not start:\n{(home / 'log').read_text()}") from None
                time.sleep(0.3)
        yield Lab(f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset", home / "data")
    finally:
        server.terminate()
        try:
            server.wait(60)  # it ends its kernels first
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def write(path: Path, *sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, path)
    return notebook


def explorer_in(page) -> Explored:
    page.wait_for_selector(".jp-OutputArea .vp-explorer[data-ready]", timeout=120_000)
    return Explored(page, Path("/"))


def interact(view: Explored) -> None:
    """The same keys and clicks as in the offline page."""
    view.page.locator(".vp-brand").click()  # the keys go to the widget, not to the notebook
    first = view.heat()
    view.press("ArrowRight", "Shift+ArrowRight")
    assert "step 16 of 39" in view.text("live") and view.heat() != first
    view.press("ArrowUp")
    view.settled("e.shownPlane", "5/mean")
    view.press("d", "d", "a", "s", "k")
    changed = {name: view.view[name] for name in ("mode", "scale", "sinks", "kept")}
    assert changed == {"mode": 2, "scale": "step", "sinks": "masked", "kept": True}
    view.page.locator('[data-step="9"]').first.click()
    assert view.view["column"] == 9
    view.page.mouse.click(*view.point(2, 3))
    assert view.view["region"] == [2, 3, 2, 3]
    view.press("?")
    assert view.page.locator(".vp-help").is_visible()
    view.press("Escape")
    assert view.page.locator(".jp-Cell").count() == 2  # JupyterLab took none of the keys for itself


def test_the_widget_works_and_tells_python_its_view(lab, notebooks, new_page):
    write(notebooks / "live.ipynb", SHOW, ASK)
    page = new_page(offline=False, height=1400)
    page.goto(lab.url("live.ipynb"))
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=120_000)  # else nothing is run
    page.locator(".jp-Cell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    interact(explorer_in(page))
    page.wait_for_timeout(500)
    page.locator(".jp-Cell").last.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    printed = page.locator(".jp-Cell .jp-OutputArea pre", has_text="view is")
    printed.wait_for(timeout=60_000)
    assert (
        "step=9&layer=5&trace=difference&scale=step&sinks=masked&kept=shown&rows=2-2&cols=3-3" in printed.inner_text()
    )


def execute(notebooks: Path, lab: Lab, name: str, *sources: str, kernel: str = "python3") -> None:
    """Run a notebook with papermill; sign the executed copy as `jupyter trust` does."""
    write(notebooks / "source.ipynb", *sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        papermill.execute_notebook(notebooks / "source.ipynb", notebooks / name, progress_bar=False)
    executed = nbformat.read(notebooks / name, as_version=4)
    executed.metadata["kernelspec"]["name"] = kernel
    executed.metadata.pop("language_info")
    nbformat.write(executed, notebooks / name)
    NotebookNotary(data_dir=str(lab.data)).sign(executed)


def test_an_executed_copy_shows_the_widget_without_running_anything(lab, notebooks, new_page):
    execute(notebooks, lab, "executed.ipynb", SHOW, ASK)
    page = new_page(offline=False, height=1400)
    page.goto(lab.url("executed.ipynb"))
    interact(explorer_in(page))


def test_an_inline_page_works_with_no_kernel_at_all(lab, notebooks, new_page):
    execute(notebooks, lab, "inline.ipynb", SHOW, "widget.inline()", kernel="absent")
    page = new_page(offline=False, height=1400)
    page.goto(lab.url("inline.ipynb"))
    dialog = page.locator(".jp-Dialog", has_text="Select Kernel")
    dialog.locator("select").select_option(label="No Kernel", timeout=120_000)
    dialog.locator(".jp-mod-accept").click()
    frame = page.frame_locator(".jp-OutputArea iframe")
    frame.locator(".vp-explorer[data-ready]").wait_for(timeout=60_000)
    frame.locator(".vp-brand").click()
    page.keyboard.press("ArrowRight")
    assert "step 6 of 39" in frame.locator('[data-ref="live"]').inner_text()
