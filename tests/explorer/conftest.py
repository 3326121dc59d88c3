"""A real Chromium with the network off, and pages that must not print a single error."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from actions import START, everything
from open_page import Explored
from running_lab import Lab, explorer_in, run_first_cell, running_lab, write

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SHOW = f"""import visionpulse_analysis as vpa
store = vpa.TraceStore("traces")
widget = vpa.explore(*[store[name] for name in ("dense", "longer", "shorter")], view="{START}", store=store.path)
widget"""
ASK = "print('view is', widget.view)"


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """Debian's Chromium, driven by playwright; a fresh profile per session."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


def open_window(
    browser,
    complaints: list[str],
    *,
    offline: bool = True,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    answers: str = "file:",
    excuse: str | None = None,
):
    """A page of a context of its own, which notes every error, and offline every request, among the `complaints`.

    `answers` begins an address that the test itself answers for; an error with `excuse` in it is expected.
    """
    context = browser.new_context(
        offline=offline, viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()

    def heard(message) -> None:
        told = f"{message.text} ({message.location.get('url', '')[:80]})"
        # The tests read pixels, over and over, which Chromium comments on; the page itself never does. JupyterLab may
        # warn of what it likes, and miss an answer of its own server; the widget asks nothing of it.
        lab_itself = not offline and (message.type == "warning" or "/api/" in told)
        if message.type in ("error", "warning") and "willReadFrequently" not in told and not lab_itself:
            complaints.append(told)

    def failed(error) -> None:
        if excuse is None or excuse not in str(error):
            complaints.append(f"page error: {error}")

    def asked(request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", answers)):
            complaints.append(request.url)

    page.on("pageerror", failed)
    page.on("console", heard)
    if offline:
        page.on("request", asked)
    else:  # JupyterLab: this machine only
        context.route(lambda url: "//127.0.0.1" not in url, lambda route: route.abort())
    return page


@pytest.fixture
def new_page(chromium) -> Iterator[Callable]:
    """Make pages; at the end of the test none may have logged an error or asked the network for anything."""
    pages, complaints = [], []

    def make(**options):
        pages.append(open_window(chromium, complaints, **options))
        return pages[-1]

    yield make
    for page in pages:
        page.context.close()
    assert complaints == []


@pytest.fixture
def explored(new_page, tmp_path) -> Callable:
    """Save an explorer and open it: ``explored(trace)``, ``explored(dense, pruned, link="step=3")``."""
    from visionpulse_analysis.explorer import explore

    def open_page(*traces, link: str = "", width: int = 1280, dark: bool = False, **options) -> Explored:
        path = explore(*traces, **options).save(tmp_path / "explorer.html")
        return Explored(new_page(width=width, dark=dark), path).open(link)

    return open_page


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """JupyterLab over the folders of all tests."""
    with running_lab(tmp_path_factory.mktemp("home"), tmp_path_factory.getbasetemp()) as server:
        yield server


@pytest.fixture(scope="session")
def traces():
    """What `everywhere` shows."""
    return everything()


@pytest.fixture(scope="session", params=["page", pytest.param("lab", marks=pytest.mark.slow)])
def everywhere(request, chromium, traces, tmp_path_factory) -> Iterator[Explored]:
    """The same traces, opened once as the offline page and once as the widget in JupyterLab."""
    from visionpulse_analysis.explorer import explore

    folder, complaints = tmp_path_factory.mktemp(request.param), []
    if request.param == "page":
        page = open_window(chromium, complaints)
        view = Explored(page, explore(*traces).save(folder / "page.html")).open(START)
    else:
        from visionpulse_analysis.traces.store import TraceStore

        store = TraceStore(folder / "traces", mode="a")
        for trace in traces:
            store.add(trace)
        page = open_window(chromium, complaints, offline=False, height=2000)
        server = request.getfixturevalue("lab")
        run_first_cell(page, server.url(write(folder / "live.ipynb", SHOW, ASK)))
        view = explorer_in(page)
    view.complaints = complaints
    yield view
    page.context.close()
