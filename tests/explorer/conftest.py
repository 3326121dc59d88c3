"""A real Chromium with the network off, and pages that must not print a single error."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator:
    """Debian's Chromium, driven by playwright; a fresh profile per session."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium) -> Iterator[Callable]:
    """Make pages; at the end of the test none may have logged an error or asked the network for anything."""
    contexts, complaints = [], []

    def heard(message) -> None:
        # The tests read pixels, over and over, which Chromium comments on; the page itself never does.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            complaints.append(message.text)

    def asked(request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(request.url)

    def make(*, offline: bool = True, width: int = 1280, height: int = 900, dark: bool = False):
        context = chromium.new_context(
            offline=offline,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        if offline:
            page.on("console", heard)
            page.on("request", asked)
        else:  # JupyterLab: this machine only, and its own pages log what they like
            context.route(lambda url: "//127.0.0.1" not in url, lambda route: route.abort())
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


class Explored:
    """A saved explorer, open in the browser."""

    def __init__(self, page, path: Path) -> None:
        self.page, self.url = page, path.as_uri()

    def open(self, link: str = "") -> Explored:
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}#{link}" if link else self.url)
        self.page.wait_for_selector("[data-ready]")
        return self

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, name: str) -> str:
        return self.page.locator(f'[data-ref="{name}"]').inner_text()

    def look(self, expression: str):
        """Evaluate JavaScript with `e` = the explorer in the page."""
        return self.page.evaluate(f"((e) => {expression})(document.querySelector('.vp-explorer').explorer)")

    def settled(self, expression: str, value) -> None:
        """Wait until an expression of the explorer has a value (a layer may have to be decoded first)."""
        for _ in range(100):
            found = self.look(expression)
            if found == value:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{expression} is {found!r}, expected {value!r}")

    def pixels(self, name: str) -> np.ndarray:
        """uint8 [patch, 4]: colour and opacity of a canvas, 3 pixels inside the corner of each patch."""
        return np.array(
            self.look(
                f"((c) => {{ const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                " const at = (x, y) => 4 * ((y + 3) * c.width + x + 3);"
                " return e.stageRects.map(([, x, y]) => [...all.slice(at(x, y), at(x, y) + 4)]); })"
                f"(e.ref.{name})"
            )
        )

    @property
    def view(self) -> dict:
        return self.look("({...e.view})")

    def heat(self) -> str:
        """What the heat canvas holds, as a PNG data URL."""
        return self.look("e.ref.heat.toDataURL()")

    def point(self, row: float, col: float, rows: int = 8, cols: int = 8) -> tuple[float, float]:
        """Page coordinates of the middle of a patch."""
        box = self.page.locator('[data-ref="stage"]').bounding_box()
        return box["x"] + (col + 0.5) * box["width"] / cols, box["y"] + (row + 0.5) * box["height"] / rows


@pytest.fixture
def explored(new_page, tmp_path) -> Callable:
    """Save an explorer and open it: ``explored(trace)``, ``explored(dense, pruned, link="step=3")``."""
    from visionpulse_analysis.explorer import explore

    def open_page(*traces, link: str = "", width: int = 1280, dark: bool = False, **options) -> Explored:
        path = explore(*traces, **options).save(tmp_path / "explorer.html")
        return Explored(new_page(width=width, dark=dark), path).open(link)

    return open_page
