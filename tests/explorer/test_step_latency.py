"""A step change fits in one frame of the screen."""

from __future__ import annotations

import numpy as np
import pytest
from step_latency import MEASURE, largest_trace

FRAME = 16  # milliseconds


@pytest.mark.slow
@pytest.mark.browser
def test_a_step_change_takes_at_most_a_frame(explored):
    view = explored(largest_trace())
    assert view.look("[e.data.last + 1, e.data.count]") == [1000, 1024]
    assert np.median(view.page.evaluate(MEASURE)) <= FRAME
