"""The curves of the paper figure are those under the page: of the image or of the region, of both traces, aligned."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import make_pair, make_trace

from visionpulse_analysis.explorer.figure import draw_view


def lines(fig) -> dict[str, np.ndarray]:
    """float [column] of each curve, by name."""
    return {line.get_label(): np.asarray(line.get_ydata()) for line in fig.axes[1].lines if len(line.get_xdata()) > 2}


def test_with_a_region_the_curve_is_the_attention_to_it():
    trace = make_trace(images=2)
    fig = draw_view(trace, view="step=7&layer=3&panel=1&rows=1-2&cols=3-5")
    maps = trace.attention.sel(layer=3).values.astype(float)[:, 64:].reshape(40, 8, 8)
    assert np.allclose(lines(fig)["Dense"], maps[:, 1:3, 3:6].sum((1, 2)))
    assert fig.axes[1].get_ylabel() == "attention to\nrows 1 to 2,\ncolumns 3 to 5"
    assert np.allclose(lines(draw_view(trace, view="step=7&layer=3"))["Dense"], trace.mass.sel(layer=3))


@pytest.mark.parametrize("region", ["", "&rows=2&cols=3"])
def test_both_traces_stand_over_the_same_tokens(region):
    dense, pruned = make_pair()
    drawn = lines(draw_view(dense, pruned, view=f"step=30&layer=3{region}"))
    of = (lambda t: t.attention.sel(layer=3)[:, 19]) if region else (lambda t: t.mass.sel(layer=3))
    a, b = (of(t).values.astype(float) for t in (dense, pruned))
    columns = 20 + 2 + 1 + 4 + 3 + 14  # equal, replaced by, put in, equal
    assert [len(line) for line in drawn.values()] == [columns] * 2
    assert np.allclose(drawn["Dense"][~np.isnan(drawn["Dense"])], a)
    assert np.allclose(drawn["Pruned"][~np.isnan(drawn["Pruned"])], b)
    assert np.flatnonzero(np.isnan(drawn["Pruned"])).tolist() == [20, 21]


def test_the_moments_of_the_page_are_marked():
    axes = draw_view(*make_pair(), view="step=30&layer=3").axes[1]
    assert {text.get_text(): text.xy[0] + 0.5 for text in axes.texts if len(text.get_text()) > 1} == {
        "diverges": 20, "answer": 41,
    }  # fmt: skip


@pytest.mark.browser
def test_page_and_figure_draw_the_same_curves_and_veil(explored):
    dense, pruned = make_pair()
    view = "step=30&layer=3&trace=pruned&rows=1-2&cols=3-5&opacity=60"
    page, fig = explored(dense, pruned, link=view), draw_view(dense, pruned, view=view)
    for line, series in zip(lines(fig).values(), page.look("e.series.map((s) => [...s])"), strict=True):
        assert np.allclose(line[~np.isnan(line)], series, rtol=1e-6)
    alpha = page.pixels("heat")[:, 3] / 255 * float(page.look("e.ref.heat.style.opacity"))
    veil = np.asarray(fig.axes[0].collections[0].get_facecolor())
    assert np.abs(veil[:, 3] - alpha).max() < 0.005
