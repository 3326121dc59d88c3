"""The kept set is that of the last layer; at other layers the explorer says so."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import make_pair, make_trace

from visionpulse_analysis.explorer.figure import draw_view
from visionpulse_analysis.explorer.payload import pack

BUDGET = "budget 10\N{NO-BREAK SPACE}%"
SAID = {  # at model layer: of each step, and of a patch outside the kept set
    "2": (f"all 64 visible at this layer (6 at the last, {BUDGET})", ""),
    "3": (f"kept 6 of 64 at the last layer ({BUDGET})", ", not kept at the last layer"),
    "5": (f"kept 6 of 64 patches ({BUDGET})", ", dropped"),
    "mean": (f"kept 6 of 64 at the last layer ({BUDGET})", ", not kept at the last layer"),
}
TITLES = {
    "2": "all 64 visible at this layer (6 at the last)",
    "3": "kept at the last layer",
    "5": "kept",
    "mean": "kept at the last layer",
}


@pytest.mark.browser
@pytest.mark.parametrize("layer", SAID)
def test_what_is_said_and_hatched_as_dropped_is_true_of_the_layer(explored, layer):
    dense, pruned = make_pair(anchor=3)
    view = explored(dense, pruned, link=f"step=30&layer={layer}&trace=pruned&kept=shown")
    said, of_patch = SAID[layer]
    assert view.text("live").endswith(said)
    kept = pruned.dataset["kept"].values[32]  # dense step 30 is pruned step 32
    outside = int(np.flatnonzero(~kept)[-1])
    view.page.mouse.move(*view.point(outside // 8, outside % 8))
    assert view.text("value").endswith(f" of the softmax row{of_patch}")
    view.page.mouse.move(0, 0)
    assert (view.pixels("marks")[:, 3] > 0).tolist() == ([False] * 64 if layer == "2" else (~kept).tolist())


@pytest.mark.browser
def test_another_layer_is_said_at_once(explored):
    view = explored(*make_pair(anchor=3), link="step=30&layer=2&trace=pruned&kept=shown")
    view.page.locator('[data-ref="layer"]').select_option("5")
    view.settled("e.shownPlane.split('/')[0]", "5")
    assert view.text("live").endswith(SAID["5"][0])


@pytest.mark.browser
def test_without_the_number_at_each_layer_the_kept_set_is_taken_for_all(explored):
    view = explored(*make_pair(), link="step=30&layer=2&trace=pruned")
    assert view.text("live").endswith(SAID["5"][0])


@pytest.mark.parametrize("layer", TITLES)
def test_the_figure_draws_and_says_the_same(layer):
    trace = make_trace(budget=0.1, anchor=3)
    panel = draw_view(trace, view=f"step=7&layer={layer}&kept=shown").axes[1]
    dropped, kept = (len(patches.get_paths()) for patches in panel.collections)
    assert panel.get_title("left") == TITLES[layer]
    assert (kept, dropped) == ((64, 0) if layer == "2" else (6, 58))


def test_the_page_holds_the_number_at_the_layers_it_shows():
    with_numbers, without = make_trace(budget=0.1, anchor=3), make_trace(budget=0.1)
    assert isinstance(pack(with_numbers)["traces"][0]["visible"], str)
    assert pack(without)["traces"][0]["visible"] is None and pack(make_trace())["traces"][0]["visible"] is None
