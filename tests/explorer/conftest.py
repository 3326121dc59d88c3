"""A real Chromium with the network off, and pages that must not print a single error."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from open_page import Explored

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
    contexts, complaints, answered = [], [], []

    def heard(message) -> None:
        # The tests read pixels, over and over, which Chromium comments on; the page itself never does.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            complaints.append(message.text)

    def asked(request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", *answered)):
            complaints.append(request.url)

    def make(
        *,
        offline: bool = True,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        answers: str = "file:",
        excuse: str | None = None,
    ):
        def failed(error) -> None:
            if excuse is None or excuse not in str(error):
                complaints.append(f"page error: {error}")

        answered.append(answers)  # an address that the test itself answers for
        context = chromium.new_context(
            offline=offline,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", failed)
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


@pytest.fixture
def explored(new_page, tmp_path) -> Callable:
    """Save an explorer and open it: ``explored(trace)``, ``explored(dense, pruned, link="step=3")``."""
    from visionpulse_analysis.explorer import explore

    def open_page(*traces, link: str = "", width: int = 1280, dark: bool = False, **options) -> Explored:
        path = explore(*traces, **options).save(tmp_path / "explorer.html")
        return Explored(new_page(width=width, dark=dark), path).open(link)

    return open_page
