"""The paper figure shows what the explorer shows."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from made_traces import SINK, make_pair, make_trace

from visionpulse_analysis import figures
from visionpulse_analysis.explorer.figure import draw_view
from visionpulse_analysis.explorer.view import View, read_view


def overlay(fig) -> np.ndarray:
    """RGBA [row, col, 4] of the 8 x 8 patches drawn over the picture."""
    return np.asarray(fig.axes[0].collections[0].get_facecolor()).reshape(8, 8, 4)


def test_a_link_is_read_in_full():
    link = "#pruned_step=7&layer=5&head=mean&trace=difference&scale=step&sinks=masked&panel=1&rows=2-4&cols=3&opacity=5"
    assert read_view(link) == View(7, True, 5, "mean", "difference", True, True, False, 1, "magma", (2, 3, 4, 3), 5)


@pytest.mark.parametrize("link", ["steps=3", "step=-1", "layer=x", "trace=both", "rows=a&cols=1"])
def test_a_wrong_link_is_refused(link):
    with pytest.raises(ValueError, match="view"):
        read_view(link)


def test_overlay_colours_are_those_of_the_step(tmp_path):
    trace = make_trace()
    fig = draw_view(trace, view="step=7&layer=3&scale=absolute&rows=1-2&cols=1-2")
    stored = trace.attention.sel(layer=3).values.astype(float)
    wanted = mpl.colormaps["magma"](trace.grid.to_map(stored[7] / stored.max()))[..., :3]
    assert np.allclose(overlay(fig)[..., :3], wanted)
    assert [path.suffix for path in figures.save(fig, "view", folder=tmp_path)] == [".png", ".pdf", ".svg"]


@pytest.mark.parametrize("mode", ["", "&trace=difference"])
def test_the_colour_bar_shows_the_colours_as_they_lie_on_the_picture(mode):
    fig = draw_view(*make_pair(), view=f"step=30&layer=3&opacity=40{mode}")
    [bar] = [ax.images[0] for ax in fig.axes if ax.get_label() == "<colorbar>"]
    pixels = np.asarray(fig.axes[0].images[0].get_array()).reshape(-1, 3) / 255
    by_light = pixels[np.argsort(pixels @ [0.2126, 0.7152, 0.0722])]
    lies = overlay(fig).reshape(-1, 4)
    for place, ground in enumerate(part.mean(axis=0) for part in np.array_split(by_light, 16)):
        seen = lies[:, :3] * lies[:, 3:] + (1 - lies[:, 3:]) * ground
        told = np.asarray(bar.get_array())[:, place]
        assert np.abs(seen[:, None] - told[None]).max(axis=2).min(axis=1).max() < 0.02


def test_difference_is_taken_at_aligned_tokens():
    dense, pruned = make_pair()
    drawn = overlay(draw_view(dense, pruned, view="step=30&layer=3&trace=difference&scale=step"))
    a, b = (t.attention.sel(layer=3).values.astype(float) for t in (dense, pruned))
    value = b[32] - a[30]
    share = (value / np.abs(value).max() + 1) / 2
    assert np.allclose(drawn[..., :3], mpl.colormaps["berlin"](dense.grid.to_map(share))[..., :3])


def test_masked_sinks_show_the_bare_picture():
    trace = make_trace()
    clear = overlay(draw_view(trace, view="step=7&layer=3&sinks=masked"))[..., 3] == 0
    assert np.flatnonzero(clear).tolist() == [SINK]


def test_kept_patches_are_a_panel_of_their_own():
    trace = make_trace(budget=0.1)
    assert len(draw_view(trace, view="step=7&layer=3").axes) == 3  # the map, the curve, the colour bar
    panel = draw_view(trace, view="step=7&layer=3&kept=shown").axes[1]
    dropped, kept = (len(patches.get_paths()) for patches in panel.collections)
    assert panel.get_title("left") == "kept"
    visible = int(trace.dataset["kept"][7].sum())
    assert (kept, dropped) == (visible, 64 - visible)


def test_beside_a_dense_trace_the_kept_patches_are_those_of_the_aligned_step():
    dense, pruned = make_pair()
    panel = draw_view(dense, pruned, view="step=30&layer=3&kept=shown").axes[1]
    assert panel.get_title("left") == "kept (pruned)"
    visible = dense.grid.box[pruned.dataset["kept"].values[32]]  # dense step 30 is pruned step 32
    drawn = [path.get_extents().extents for path in panel.collections[1].get_paths()]
    assert np.allclose(drawn, visible)


def test_what_the_traces_do_not_hold_is_refused():
    with pytest.raises(ValueError, match="layer 4 was not recorded"):
        draw_view(make_trace(), view="layer=4")
    with pytest.raises(ValueError, match=r"steps 0\.\.39"):
        draw_view(make_trace(), view="step=40")
    with pytest.raises(ValueError, match="no token of the other trace"):
        draw_view(*make_pair(), view="step=20&trace=difference")
    with pytest.raises(ValueError, match="none was given"):
        draw_view(make_trace(), view="trace=pruned")
