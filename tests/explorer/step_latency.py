"""How long a step change takes in the page: 1,000 steps x 1,024 patches. Run it for the spread of the times.

python tests/explorer/step_latency.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from made_traces import make_trace

from visionpulse_analysis.explorer import explore
from visionpulse_analysis.traces import Trace

MEASURE = """() => {
  const e = document.querySelector('.vp-explorer').explorer, times = [];
  for (let i = 0; i < 200; i++) {
    const start = performance.now();
    e.move(i % 7 ? 1 : 10);
    document.body.getBoundingClientRect();
    e.ref.heat.getContext('2d').getImageData(0, 0, 1, 1);  // waits until the canvas is really drawn
    times.push(performance.now() - start);
  }
  return times;
}"""


def largest_trace() -> Trace:
    return make_trace(steps=1000, rows=32, cols=32, layers=(3,), pixels=24)


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = explore(largest_trace()).save(Path(folder) / "page.html")
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("[data-ready]")
        times = page.evaluate(MEASURE)
        browser.close()
    low, median, high = np.percentile(times, [5, 50, 95])
    print(f"step change: median {median:.1f} ms, 5 % {low:.1f} ms, 95 % {high:.1f} ms ({len(times)} steps)")


if __name__ == "__main__":
    main()
