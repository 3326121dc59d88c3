"""Large traces: what is left out is said, the mean stays that of all layers, and a step costs little."""

from __future__ import annotations

import re

import numpy as np
import pytest
from made_traces import make_pair, make_trace
from open_page import shows, word_after

from visionpulse_analysis.explorer import explore, page
from visionpulse_analysis.explorer.figure import draw_view
from visionpulse_analysis.explorer.payload import CODE_BYTES, pack

HALF = 2.0**-11  # rounding to float16, relative; subnormal values below are rounded to a step of 2 ** -24


def test_the_code_of_the_page_is_not_larger_than_assumed():
    assert len(page.script().encode()) + len(page.asset("explorer.css").encode()) < CODE_BYTES


@pytest.fixture(scope="module")
def nine_layers():
    return make_trace(steps=120, rows=16, cols=16, layers=tuple(range(9)))


@pytest.mark.browser
def test_what_was_left_out_is_shown_and_the_mean_is_that_of_all_layers(explored, nine_layers):
    trace = nine_layers
    view = explored(trace, max_bytes=420_000, link="step=7&layer=mean")
    kept = len(view.look("e.data.layers"))
    assert 1 < kept < 9
    assert view.text("notes").startswith(
        f"{kept} of 9 layers are in this page, to keep it small; their mean is that of all 9 (rounded to float16)."
    )
    assert view.page.locator('[data-ref="layer"] option').last.inner_text() == "mean of 9"
    shown = np.array(view.look("Array.from(e.values)"))
    wanted = trace.attention[7].astype(float).mean("layer").values
    assert np.allclose(shown, wanted, rtol=1.01 * HALF, atol=2.0**-25)
    assert not np.allclose(
        shown, trace.attention[7].sel(layer=view.look("e.data.layers")).astype(float).mean("layer"), rtol=0.01
    )
    assert shows(word_after(view.text("live"), "mass "), float(trace.mass[7].astype(float).mean()))


@pytest.mark.parametrize("max_bytes", [3_000_000, 420_000])
def test_page_and_figure_show_the_same_mean(nine_layers, max_bytes):
    packed = explore(nine_layers, view="layer=mean", max_bytes=max_bytes)
    assert ("mean" in pack(nine_layers, max_bytes=max_bytes)["stored"]) == (max_bytes < 3_000_000)
    assert "layer=mean" in packed.view
    bar = draw_view(nine_layers, view="step=7&layer=mean").axes[2]
    assert np.isclose(bar.get_ylim()[1], nine_layers.attention[7].astype(float).mean("layer").max())


def test_where_the_mean_does_not_fit_it_is_no_choice(nine_layers):
    small = pack(nine_layers, max_bytes=200_000)
    assert (small["stored"], small["recorded_layers"]) == ([small["layer"]], 9)
    assert small["notes"][:-1] == [
        "1 of 9 layers is in this page, to keep it small; there was no room for the mean of all."
    ]


def test_what_is_left_out_names_the_option_that_keeps_it(nine_layers):
    heads = make_trace(steps=120, rows=16, cols=16, layers=(0, 1), heads=tuple(range(8)))
    for trace, asked in ((nine_layers, 420_000), (nine_layers, 1), (heads, 350_000)):
        small = pack(trace, max_bytes=asked)
        told = re.search(r"max_bytes=([\d_]+) in vpa.explore, or --max-bytes", small["notes"][-1])
        assert told is not None
        enough = int(told[1])
        whole = pack(trace, max_bytes=enough)
        assert whole["notes"] == [] and whole["layers"] == trace.layers and whole["heads"] == trace.heads
    with pytest.raises(ValueError, match="mean of the layers is not in the page"):
        explore(nine_layers, view="layer=mean", max_bytes=200_000)


def test_the_mean_of_two_traces_is_that_of_the_layers_both_recorded():
    first, second = make_trace(layers=(1, 2, 3)), make_trace(layers=(2, 3, 4), seed=1)
    assert pack(first, second)["recorded_layers"] == 2
    bar = draw_view(first, second, view="step=7&layer=mean").axes[2]
    assert np.isclose(bar.get_ylim()[1], first.attention.sel(layer=[2, 3])[7].astype(float).mean("layer").max())


def test_a_layer_that_is_asked_for_is_in_the_page(nine_layers):
    most = pack(nine_layers)["layer"]
    other = (most + 1) % 9
    packed = explore(nine_layers, view=f"step=3&layer={other}", max_bytes=200_000)
    assert f"layers [{other}]" in repr(packed)


def test_heads_and_layers_left_out_together_keep_the_mean_of_each_head():
    trace = make_trace(steps=60, layers=tuple(range(6)), heads=(0, 3))
    small = pack(trace, max_bytes=190_000)
    assert small["heads"] == [0, 3] and small["stored"][-1] == "mean" and len(small["stored"]) < 7
    assert [len(planes) for planes in small["traces"][0]["recorded"]["attention"]["planes"]] == [2] * len(
        small["stored"]
    )


@pytest.mark.browser
def test_a_step_draws_each_patch_once_and_touches_few_elements(explored):
    view = explored(make_trace(steps=1000, rows=32, cols=32, layers=(3,), pixels=24), link="step=500")
    drawn, changed = view.page.evaluate(
        """async () => {
          const e = document.querySelector('.vp-explorer').explorer, fill = CanvasRenderingContext2D.prototype.fillRect;
          let drawn = 0, changed = 0;
          CanvasRenderingContext2D.prototype.fillRect = function (...box) { drawn += 1; fill.apply(this, box); };
          const everything = { subtree: true, childList: true, attributes: true, characterData: true };
          new MutationObserver((all) => { changed += all.length; }).observe(e.root, everything);
          for (let i = 0; i < 10; i++) e.move(1);
          await new Promise((done) => setTimeout(done));
          CanvasRenderingContext2D.prototype.fillRect = fill;
          return [drawn, changed];
        }"""
    )
    assert drawn == 10 * 1024
    assert changed <= 10 * 20
    assert view.view["column"] == 510


@pytest.mark.browser
def test_two_pruned_traces_are_not_called_dense(explored):
    first, second = make_trace(budget=0.1), make_pair()[1]
    view = explored(first, second, link="step=3&trace=difference")
    assert view.text("modes").split() == ["First", "Second", "Difference"]
    assert view.text("unit").startswith("second \N{MINUS SIGN} first attention")
