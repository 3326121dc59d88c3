"""What is shown equals the stored trace."""

from __future__ import annotations

import numpy as np
import pytest
from made_traces import make_trace
from open_page import shows, word_after

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("layer", [2, 5])
@pytest.mark.parametrize("head", [1, 4])
def test_the_page_holds_the_stored_attention_exactly(explored, layer, head):
    trace = make_trace(heads=(1, 4))
    view = explored(trace, link=f"layer={layer}&head={head}")
    stored = trace.attention.sel(layer=layer, head=head).values.astype(np.float32)
    assert np.array_equal(view.look("Array.from(e.plane.attention[0])"), stored.ravel())


def test_values_under_the_pointer_and_in_the_step_line_equal_the_trace(explored):
    trace = make_trace()
    view = explored(trace, link="step=0&layer=3")
    stored, rng = trace.attention.sel(layer=3).values.astype(float), np.random.default_rng(0)
    for step in (0, 7, 39):
        view.page.locator('[data-ref="slider"]').fill(str(step))
        assert trace.tokens[step] in view.text("live")
        assert shows(word_after(view.text("live"), "mass "), float(trace.mass.sel(layer=3)[step]))
        assert shows(word_after(view.text("live"), "probability "), float(np.exp(trace.logprobs[step])))
        for patch in rng.integers(0, 64, 6):
            view.page.mouse.move(*view.point(patch // 8, patch % 8))
            assert view.text("value").startswith(f"Row {patch // 8}, column {patch % 8}: attention ")
            assert shows(word_after(view.text("value"), "attention "), stored[step, patch])


def test_means_over_layers_and_heads_are_those_of_the_trace(explored):
    trace = make_trace(heads=(1, 4))
    view = explored(trace, link="step=6&layer=mean&head=mean")
    shown = np.array(view.look("Array.from(e.plane.attention[0])")).reshape(40, 64)
    assert np.allclose(shown, trace.attention.astype(float).mean(["layer", "head"]).values, rtol=1e-6)
    assert shows(word_after(view.text("live"), "mass "), float(trace.mass[6].astype(float).mean()))


def test_colours_follow_the_values(explored):
    trace = make_trace()
    view = explored(trace, link="step=5&layer=3")
    stored = trace.attention.sel(layer=3).values.astype(float)[5]
    colours, level = view.pixels("heat"), np.round(255 * stored / stored.max()) / 255
    assert colours[stored.argmax()].tolist() == [252, 253, 191, 255]  # the last colour of magma, opaque
    assert np.abs(colours[:, 3] / 255 - (0.65 + 0.35 * np.sqrt(level))).max() < 0.005
