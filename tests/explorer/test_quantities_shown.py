"""Further recorded quantities: chosen over the picture or as the curve, in the page, in its links and in the figure."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import make_trace
from open_page import shows, word_after

from visionpulse_analysis.explorer import explore
from visionpulse_analysis.explorer.figure import draw_view
from visionpulse_analysis.explorer.payload import CODE_BYTES, pack
from visionpulse_analysis.traces.quantities import CALL_AXES, Quantity

STEPS, LAYERS, HEADS = 40, (2, 3, 5), (1, 4)
UNDEFINED = 7
NORM = Quantity("value_norm", CALL_AXES[3], "length", "weight times norm", (0, None))
LEAN = Quantity("lean", CALL_AXES[2], "logits", "of one layer, no heads")
ENTROPY = Quantity("head_entropy", CALL_AXES[1], "nats", "over patches", (0, None), "without mass")


@pytest.fixture(scope="module")
def trace():
    rng = np.random.default_rng(8)
    entropy = 4 * rng.random((STEPS, 3, 2))
    entropy[UNDEFINED] = np.nan
    recorded = {
        NORM: 5e4 * rng.lognormal(0, 1, (STEPS, 3, 2, 64)),  # beyond what a float16 can hold
        LEAN: rng.normal(0, 3, (STEPS, 3, 64)),
        ENTROPY: entropy,
    }
    return make_trace(heads=HEADS, recorded=recorded)


@pytest.mark.browser
def test_the_picture_and_the_curve_show_what_is_chosen(explored, trace):
    view = explored(trace, link="step=6&layer=3&head=4")
    shown = view.page.locator('[data-ref="shown"]')
    assert shown.locator("option").all_text_contents() == ["attention", "value norm", "lean"]
    shown.select_option("value_norm")
    view.page.locator('[data-ref="curveChoice"]').select_option("head_entropy")
    view.settled("e.shownPlane", "3/4/value_norm")
    stored = trace.data["value_norm"].sel(layer=3, head=4).values
    found = np.array(view.look("Array.from(e.plane.attention[0])")).reshape(stored.shape)
    assert np.abs(found / stored - 1).max() < 2.0**-11
    view.page.mouse.move(*view.point(2, 5))
    assert view.text("value").startswith("Row 2, column 5: value norm ") and view.text("value").endswith(" length")
    assert shows(word_after(view.text("value"), "value norm "), found[6, 21])
    assert "value norm, length; layer 3, head 4" in view.text("unit") and view.text("low") == "0"
    series = np.array(view.look("Array.from(e.series[0], (v) => Number.isNaN(v) ? -1 : v)"))
    expected = trace.data["head_entropy"].sel(layer=3, head=4).values
    assert series[UNDEFINED] == -1 and np.allclose(np.delete(series, UNDEFINED), np.delete(expected, UNDEFINED))
    assert view.text("curveTitle") == "Head entropy per step (nats)"
    view.away()
    view.page.locator(f'[data-step="{UNDEFINED}"]').hover()
    assert "head entropy undefined nats" in view.text("value")
    assert shows(word_after(view.text("live"), "mass "), float(trace.mass.sel(layer=3, head=4)[6]))
    assert "shown=value_norm&curve=head_entropy" in view.text("link")


@pytest.mark.browser
def test_values_with_a_sign_have_two_colours_and_no_heads_to_choose(explored, trace):
    view = explored(trace, link="step=6&layer=3&head=1&shown=lean")
    values = trace.data["lean"].sel(layer=3).values[6]
    limit = np.abs(values).max()
    assert float(view.text("high")) == pytest.approx(limit, rel=2.0**-11) and view.text("low").startswith(
        "\N{MINUS SIGN}"
    )
    assert view.page.locator('[data-ref="map"]').is_disabled()
    pixels = view.pixels("heat").astype(int)
    ends = pixels[values.argmax()], pixels[values.argmin()]
    assert np.abs(ends[0] - ends[1])[:3].max() > 40  # red at one end, blue at the other
    same = explored(trace, link="step=6&layer=3&head=4&shown=lean").pixels("heat")
    assert np.array_equal(pixels, same)


def test_what_does_not_fit_beside_the_attention_is_left_out_and_said(trace):
    packed = pack(trace, max_bytes=CODE_BYTES + len(str(pack(make_trace(heads=HEADS)))) + 26_000)
    table = {row["name"]: row for row in packed["quantities"]}
    assert {"attention", "mass", "head_entropy"} <= set(table)
    assert table["head_entropy"] == {
        "name": "head_entropy", "label": "head entropy", "unit": "nats", "how": "over patches", "map": False,
        "signed": False,
    }  # fmt: skip
    left = {"value_norm", "lean"} - set(table)
    assert left == {"value_norm"} and all(
        any(name.replace("_", " ") in note for note in packed["notes"]) for name in left
    )


def test_a_view_of_what_is_not_there_is_refused(trace):
    for link, words in {
        "shown=nope": "'nope' is not there to be shown over the picture; there are attention, value_norm, lean",
        "shown=head_entropy": "'head_entropy' is not there to be shown",
        "curve=value_norm": "'value_norm' is not there to be drawn as the curve; there are mass, head_entropy",
    }.items():
        with pytest.raises(ValueError, match=words):
            explore(trace, view=link)
        with pytest.raises(ValueError, match=words):
            draw_view(trace, view=link)
    with pytest.raises(ValueError, match="'value_norm' is not there"):  # of two traces only one has it
        explore(trace, make_trace(heads=HEADS, budget=0.5), view="shown=value_norm")


def test_the_figure_shows_the_same(trace):
    figure = draw_view(trace, view="step=6&layer=3&head=4&shown=value_norm&curve=head_entropy")
    labels = [axes.get_ylabel() for axes in figure.axes] + [axes.get_xlabel() for axes in figure.axes]
    assert any("value norm, length" in label for label in labels), labels
    assert any("head entropy, nats" in label for label in labels), labels
    lines = [line.get_ydata() for axes in figure.axes for line in axes.get_lines()]
    expected = trace.data["head_entropy"].sel(layer=3, head=4).values
    assert any(np.shape(line) == expected.shape and np.allclose(line, expected, equal_nan=True) for line in lines)
    signed = draw_view(trace, view="step=6&layer=3&shown=lean")
    assert signed.axes
