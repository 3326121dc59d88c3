"""JupyterLab, running for the tests, and the notebooks that they open in it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nbformat
from open_page import Explored


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


@contextmanager
def running_lab(home: Path, root: Path) -> Iterator[Lab]:
    """JupyterLab on a free port of this machine, over the folders of all tests, with the tests' own signatures."""
    token = secrets.token_hex(16)
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


def run_first_cell(page, url: str) -> None:
    page.goto(url)
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=120_000)  # else nothing is run
    page.locator(".jp-Cell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")


def explorer_in(page) -> Explored:
    page.wait_for_selector(".jp-OutputArea .vp-explorer[data-ready]", timeout=120_000)
    return Explored(page, Path("/"))
