"""The null that exchanges masses between like steps: a slow loop, and what it must and must not catch."""

import numpy as np
import pytest

from visionpulse_analysis.metrics.statistics import correlation, exchange_null


def made(rng, clusters=20, size=30):
    """Clusters of steps of two kinds; both quantities are higher in one kind, and unrelated inside each."""
    owner = np.repeat(np.arange(clusters), size)
    kind = rng.random(len(owner)) < 0.3
    x, y = rng.random(len(owner)) + 2 * kind + owner, rng.random(len(owner)) + 5 * kind - owner
    return x, y, owner, kind


def test_the_band_is_that_of_a_slow_loop(rng):
    x, y, owner, kind = made(rng)
    found = exchange_null(x, y, owner, kind, n_permutations=400)
    slow = []
    for _ in range(400):
        other = x.copy()
        for cluster in np.unique(owner):
            for one in (True, False):
                place = np.flatnonzero((owner == cluster) & (kind == one))
                other[place] = x[rng.permutation(place)]
        slow.append(correlation(other, y, owner, kind="within", n_resamples=2).value)
    assert found.r == pytest.approx(correlation(x, y, owner, kind="within", n_resamples=2).value)
    spread = np.std(slow)
    assert found.mean == pytest.approx(np.mean(slow), abs=spread / 2)
    assert (found.low, found.high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=spread)
    assert found.low > 0.8 and found.low < found.r < found.high and found.p > 0.05  # the kinds alone make that r


def test_a_relation_inside_the_kinds_lies_outside_the_band(rng):
    x, y, owner, kind = made(rng)
    found = exchange_null(x, y + 2 * (x - 2 * kind), owner, kind)
    assert found.r > found.high and found.p <= 0.02
    alike = exchange_null(x, y, owner, np.zeros(len(x)))  # all alike: the difference of the kinds counts as a relation
    assert alike.low < 0 < alike.high < alike.r


def test_what_never_varies_has_no_null_and_bad_input_is_refused(rng):
    x, y, owner, kind = made(rng, clusters=3)
    assert np.isnan([exchange_null(x, np.ones(len(x)), owner, kind).low]).all()
    with pytest.raises(ValueError, match="n_permutations must be at least 1"):
        exchange_null(x, y, owner, kind, n_permutations=0)
    with pytest.raises(ValueError, match="of one length"):
        exchange_null(x, y[1:], owner, kind)
