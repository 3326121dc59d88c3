"""The study of the diffusion reasoner: what leads what, and shares of the attention that are whole."""

from __future__ import annotations

import numpy as np
import pytest

from visionpulse_analysis.studies.diffusion import measure
from visionpulse_analysis.testbed.diffusion import twin


@pytest.mark.parametrize("lag", measure.LAGS)
def test_what_follows_some_steps_later_correlates_at_that_lag_alone(rng, lag):
    leads = [rng.normal(size=20) for _ in range(3)]
    series = [np.stack([one, np.roll(one, lag)])[:, 1:-1] for one in leads]
    found = {other: measure._correlated(series, other) for other in measure.LAGS}
    assert found[lag] == pytest.approx(1.0) and all(abs(r) < 0.7 for other, r in found.items() if other != lag)
    assert np.isnan(measure._correlated([], 1))


def test_shares_of_an_answers_rows_are_whole(vlm):
    asked = twin.draw_asked(2, "find", first_seed=1)
    shares = measure._other_shares(vlm, asked)
    assert shares.shape == (2, vlm.n_layers, 3) and np.allclose(shares.sum(axis=2), 1, atol=1e-5)
    trace = twin.denoise_all(vlm, asked[:1], steps=2)[0]
    own = measure._shares(trace)
    assert np.allclose(own.sum(axis=1), 1, atol=1e-5) and (own >= 0).all()
