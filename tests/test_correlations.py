"""Correlations: equal to scipy's and to their definition, pooled and within samples."""

import numpy as np
import pytest
from clusters import bounds, clustered
from scipy import stats

from visionpulse_analysis.metrics.statistics import cluster_bootstrap, correlation


def correlated(seed=8):
    rng = np.random.default_rng(seed)
    x, codes = clustered(rng, 15)
    return x, np.round(x - 2 * x.mean() + rng.normal(size=len(x)), 1), codes


def within_by_hand(x, y, codes):
    parts = [(x[codes == c], y[codes == c]) for c in np.unique(codes)]
    return np.corrcoef(
        np.concatenate([u - u.mean() for u, _ in parts]), np.concatenate([v - v.mean() for _, v in parts])
    )[0, 1]


def test_correlation_estimates_equal_scipy_and_the_definition():
    x, y, codes = correlated()
    assert correlation(x, y, codes).value == pytest.approx(stats.pearsonr(x, y)[0])
    assert correlation(x, y, codes, kind="within").value == pytest.approx(within_by_hand(x, y, codes))


def test_pooled_correlation_interval_equals_the_generic_bootstrap():
    x, y, codes = correlated()
    fast = correlation(x, y, codes, n_resamples=200, seed=4)
    slow = cluster_bootstrap((x, y), codes, lambda u, v: stats.pearsonr(u, v)[0], n_resamples=200, seed=4)
    assert [fast.value, *bounds(fast)] == pytest.approx([slow.value, *bounds(slow)])


def test_pooled_and_within_correlation_can_have_opposite_signs():
    x, codes = clustered(np.random.default_rng(9), 30)
    level = np.bincount(codes, x) / np.bincount(codes)
    y = 5 * level[codes] - (x - level[codes])
    assert correlation(x, y, codes).low > 0.5
    assert correlation(x, y, codes, kind="within").value == pytest.approx(-1)
    assert "within pearson" in correlation(x, y, codes, kind="within").method


def test_correlation_with_a_constant_is_nan_not_a_number_made_of_rounding():
    x, y, codes = correlated()
    constant_by_sample = 0.1 + 0.1 * codes
    for bad in (
        correlation(np.full(len(y), 0.1), y, codes),
        correlation(constant_by_sample, y, codes, kind="within"),
    ):
        assert np.isnan([bad.value, *bounds(bad)]).all()
    for level in np.linspace(0.1, 1.7, 9):
        one_active = np.where(codes == 0, x, level)  # constant in the resamples without sample 0
        partly = correlation(one_active, y, codes, n_resamples=20)
        assert np.isfinite(partly.value)
        assert np.isnan(bounds(partly)).all()
