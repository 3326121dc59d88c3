"""Intervals: identities, independent slow loops, and coverage.

The seeds were fixed before the results were looked at. Monte-Carlo errors are stated where a rate is claimed.
"""

import inspect

import interval_coverage
import numpy as np
import pytest
from clusters import bounds, clustered
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from visionpulse_analysis.metrics.statistics import (
    cluster_bootstrap,
    correlation,
    mcnemar,
    paired_difference,
    permutation_test,
    proportion_interval,
    shape_permutation_null,
)

settings.register_profile("loaded machine", deadline=None)


settings.load_profile("loaded machine")


def slow_bootstrap(values, labels, statistic, n_resamples, seed):
    names = sorted(set(labels))
    draws = np.random.default_rng(seed).integers(0, len(names), size=(n_resamples, len(names)))
    members = [[v for v, label in zip(values, labels, strict=True) if label == name] for name in names]
    return [statistic(np.concatenate([members[i] for i in draw])) for draw in draws]


@pytest.mark.parametrize("statistic", [np.mean, np.median, lambda v: v.mean()], ids=["mean", "median", "slow mean"])
def test_bootstrap_equals_a_slow_loop_over_the_same_draws(statistic):
    values, codes = clustered(np.random.default_rng(1), 9)
    labels = [f"scene-{code}" for code in codes]
    order = np.random.default_rng(2).permutation(len(values))
    result = cluster_bootstrap(
        values[order], np.array(labels)[order], statistic, n_resamples=300, seed=5, method="expanded"
    )
    resampled = slow_bootstrap(values, labels, statistic, 300, 5)
    assert result.value == pytest.approx(statistic(values))
    # Hesterberg's levels: wider than 2.5 and 97.5 % by the t quantile and sqrt(n / (n - 1)).
    levels = stats.norm.cdf(np.sqrt(9 / 8) * stats.t.ppf([0.025, 0.975], 8))
    assert bounds(result) == pytest.approx(np.quantile(resampled, levels))
    assert (result.n_clusters, result.n_values) == (9, len(values))


@pytest.mark.parametrize("method", ["studentized", "expanded"])
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-50, 50)), min_size=1, max_size=40), st.integers(-9, 9))
@settings(max_examples=50)
def test_bootstrap_shifts_and_scales_with_the_values_and_ignores_their_order(method, pairs, shift):
    codes, values = np.array(pairs).T
    base = cluster_bootstrap(values, codes, n_resamples=600, method=method)
    moved = cluster_bootstrap(2 * values[::-1] + shift, codes[::-1], n_resamples=600, method=method)
    expected = 2 * np.array([base.value, *bounds(base)]) + shift
    np.testing.assert_allclose([moved.value, *bounds(moved)], expected, rtol=1e-6, atol=1e-6)
    assert base.value == pytest.approx(values.mean())


def slow_studentized(values, labels, n_resamples, seed):
    """The bootstrap-t of a mean over clusters with plain loops; only the drawing of clusters is shared."""
    names = sorted(set(labels))
    members = [[v for v, label in zip(values, labels, strict=True) if label == name] for name in names]
    n = len(names)

    def mean_and_error(drawn):
        mean = np.mean(np.concatenate([members[i] for i in drawn]))
        left_out = [np.mean(np.concatenate([members[i] for i in np.delete(drawn, j)])) for j in range(n)]
        return mean, np.sqrt((n - 1) / n * sum((one - mean) ** 2 for one in left_out))

    mean, error = mean_and_error(np.arange(n))
    draws = np.random.default_rng(seed).integers(0, n, size=(n_resamples, n))
    distances = sorted((m - mean) / e for m, e in map(mean_and_error, draws))
    level = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    rank = int(level * (n_resamples + 1))
    return mean - distances[-rank] * error, mean - distances[rank - 1] * error


def test_studentized_equals_a_slow_bootstrap_of_the_same_draws():
    values, codes = clustered(np.random.default_rng(21), 9)
    values = np.exp(values)
    order = np.random.default_rng(22).permutation(len(values))
    result = cluster_bootstrap(values[order], codes[order], n_resamples=400, seed=5)
    assert bounds(result) == pytest.approx(slow_studentized(values, codes, 400, 5))
    assert result.method == "cluster bootstrap, studentized"


def test_studentized_follows_skewness_where_percentiles_do_not():
    values = np.random.default_rng(23).exponential(size=30)
    skewed, plain = (cluster_bootstrap(values, np.arange(30), method=m) for m in ("studentized", "expanded"))
    assert skewed.high - skewed.value > 1.3 * (skewed.value - skewed.low)
    assert skewed.high > plain.high


@pytest.mark.parametrize("case", ["values follow size", "lognormal", "rare events", "common events"])
def test_intervals_hold_the_truth_with_twelve_clusters_of_unequal_size(case):
    # 500 simulations: Monte-Carlo standard error 0.012 at 0.92.
    assert interval_coverage.coverage(case, 12, 500) >= 0.90


def test_the_docstring_tells_what_the_script_measured():
    told = [line.split() for line in inspect.getdoc(cluster_bootstrap).splitlines() if line.lstrip()[:1].isalpha()]
    rows = {" ".join(row[:-6]): row[-6:] for row in told if len(row) > 6 and row[-1].startswith(".")}
    assert set(rows) == set(interval_coverage.CASES)
    for case in ("lognormal", "rare events"):
        found = interval_coverage.coverage(case, 12, 400, "expanded")
        assert found == pytest.approx(float(rows[case][3]), abs=4 * 0.025)


def coverage(n_clusters, n_simulations, seed, naive=False):
    rng, hits = np.random.default_rng(seed), 0
    for simulation in range(n_simulations):
        values, codes = clustered(rng, n_clusters)
        units = np.arange(len(values)) if naive else codes
        interval = cluster_bootstrap(values, units, n_resamples=999, seed=simulation)
        hits += interval.low <= 0 <= interval.high
    return hits / n_simulations


@pytest.mark.parametrize("n_clusters", [20, 40])
def test_default_interval_covers_within_two_points_of_nominal(n_clusters):
    # 4000 simulations: Monte-Carlo standard error 0.0034, so 0.02 is 5.8 of them.
    assert abs(coverage(n_clusters, 4000, seed=20260531) - 0.95) <= 0.02


def test_step_resampling_fails_the_same_check():
    assert coverage(20, 300, seed=20260531, naive=True) < 0.7


@pytest.mark.parametrize("kind", ["pooled", "within"])
def test_correlation_interval_covers_within_two_points_of_nominal(kind):
    assert abs(interval_coverage.correlation_coverage(kind, 60, 4000) - 0.95) <= 0.02


# ---- pairs and proportions ----


def test_paired_difference_is_the_bootstrap_of_the_differences_and_pairs_matter():
    rng = np.random.default_rng(6)
    a, codes = clustered(rng, 12)
    a = a + 10
    b = 0.9 * a
    result = paired_difference(a, b, codes, seed=3)
    assert result == cluster_bootstrap(b - a, codes, seed=3)
    assert result.value == pytest.approx(-0.1 * a.mean())
    assert paired_difference(a, b[rng.permutation(len(b))], codes).low < result.low


def test_relative_difference_is_the_ratio_of_means():
    rng = np.random.default_rng(7)
    a, codes = clustered(rng, 12)
    a = a + 10
    b = a + rng.normal(size=len(a))
    result = paired_difference(a, b, codes, relative=True, seed=3)
    generic = cluster_bootstrap((a, b), codes, lambda u, v: v.mean() / u.mean() - 1, seed=3)
    assert result.value == pytest.approx(generic.value)
    result = paired_difference(a, b, codes, relative=True, seed=3, method="expanded")
    assert [result.value, *bounds(result)] == pytest.approx([generic.value, *bounds(generic)])
    doubled = paired_difference(a, 2 * a, codes, relative=True)
    assert doubled.value == pytest.approx(1)
    assert np.isnan(paired_difference(a - a, b, codes, relative=True).value)


def test_without_clusters_every_pair_is_its_own():
    a, b = np.arange(9.0), np.arange(9.0) ** 1.5
    assert paired_difference(a, b) == paired_difference(a, b, np.arange(9))


def test_wilson_interval_solves_its_own_equation():
    correct = np.arange(50) < 47
    result = proportion_interval(correct)
    assert result.value == 0.94
    for bound in bounds(result):  # Wilson: the bounds are where the score test just rejects
        assert abs(0.94 - bound) == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(bound * (1 - bound) / 50))
    certain = proportion_interval(np.ones(50))
    assert certain.low < 0.95 < certain.high == 1
    with pytest.raises(ValueError, match=r"0 or 1 per sample; got 0\.5"):
        proportion_interval([0, 0.5, 1])


# ---- the interval and invalid input ----


def test_an_interval_names_what_was_resampled():
    a, b, codes = [1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [0, 1, 2, 2]
    for interval in (
        cluster_bootstrap(a, codes, unit="scene"),
        paired_difference(a, b, codes, unit="scene"),
        paired_difference(a, b, codes, relative=True, unit="scene"),
        correlation(a, b, codes, unit="scene"),
        proportion_interval(a[:3], unit="scene"),
    ):
        assert str(interval).endswith("], 3 scenes")
    assert str(cluster_bootstrap(a, codes)).endswith("], 3 samples")


@pytest.mark.parametrize("method", ["auto", "studentized", "expanded"])
def test_no_interval_from_one_cluster_or_from_equal_values_and_it_says_why(method):
    for values, codes, why in (
        ([1.0, 2.0], [0, 0], "1 scene, at least"),
        ([0.1] * 30, np.repeat(np.arange(10), 3), "nothing varies from scene to scene"),
    ):
        result = cluster_bootstrap(values, codes, method=method, unit="scene")
        assert result.value == pytest.approx(np.mean(values))
        assert np.isnan(bounds(result)).all()
        assert result.refused.startswith(why)
        assert result.refused in str(result)
    assert np.isnan(permutation_test([1.0, 2.0], [2.0, 2.0], [0, 0]).p)


def test_undefined_statistics_give_nan_bounds():
    values, codes = clustered(np.random.default_rng(16), 5)
    rare = cluster_bootstrap(values, codes, lambda v: v.sum() if v.max() == values.max() else np.nan)
    assert np.isfinite(rare.value)
    assert np.isnan(bounds(rare)).all()


ESTIMATES = {
    "cluster_bootstrap": lambda a, b, c: cluster_bootstrap((a, b), c, lambda u, v: u.mean() - v.mean()),
    "paired_difference": paired_difference,
    "correlation": correlation,
    "permutation_test": permutation_test,
    "mcnemar": lambda a, b, c: mcnemar(a, b),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_invalid_values_are_refused(name):
    a, b, codes = [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0, 1, 2]
    ESTIMATES[name](a, b, codes)
    for bad, message in (
        ([0.0, np.nan, 1.0], r"nan at \[1\]"),
        ([0.0, 1.0], "one length"),
        ([], "not empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ESTIMATES[name](a if bad else bad, bad, codes)
    if name != "mcnemar":
        for labels in ([0, 1], [0.0, np.nan, 1.0]):
            with pytest.raises(ValueError, match="clusters"):
                ESTIMATES[name](a, b, labels)


def test_invalid_options_are_refused():
    values = [1.0, 2.0, 3.0]
    for options in ({"method": "normal"}, {"confidence": 95}, {"n_resamples": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            cluster_bootstrap(values, values, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="kind"):
        correlation(values, values, values, kind="mean")  # pyright: ignore[reportArgumentType]
    samples = [np.full((2, 3), 0.1), np.full((2, 4), 0.1)]
    for bad in ([], [np.full(3, 0.1)], [np.full((2, 3), np.nan)], [-samples[0]]):
        with pytest.raises(ValueError, match="attention"):
            shape_permutation_null(bad, 0.1)
    with pytest.raises(ValueError, match="threshold"):
        shape_permutation_null(samples, 0.0)


def slow_score(lost, won, n, difference):
    """The score statistic of a true difference: the likelihood is maximised over a fine grid."""
    least, most = max(0.0, -difference), (1 - difference) / 2
    share = np.linspace(least, most, 200_001)[1:-1]  # of lost pairs; won pairs are as many and the difference
    rest = 1 - 2 * share - difference
    likelihood = n * lost * np.log(share) + n * won * np.log(share + difference) + n * (1 - lost - won) * np.log(rest)
    best = share[np.argmax(likelihood)]
    return (won - lost - difference) / np.sqrt((2 * best + difference - difference**2) / n)


@pytest.mark.parametrize(("lost", "won"), [(6, 3), (5, 0), (1, 9), (0, 2)])
def test_the_interval_of_paired_shares_is_where_its_score_test_just_rejects(lost, won):
    a, b = np.ones(36), np.ones(36)
    b[:lost], a[lost : lost + won] = 0, 0
    found = paired_difference(a, b)
    assert found.value == pytest.approx((won - lost) / 36)
    for bound in bounds(found):
        assert abs(slow_score(lost / 36, won / 36, 36, bound)) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)


def test_shares_have_an_interval_where_nothing_happened():
    nothing, codes = np.zeros(60), np.repeat(np.arange(12), 5)
    z = stats.norm.ppf(0.975)
    assert bounds(cluster_bootstrap(nothing, codes)) == pytest.approx([0, z**2 / (12 + z**2)])  # 12 samples, not 60
    assert bounds(cluster_bootstrap(nothing + 1, codes)) == pytest.approx([12 / (12 + z**2), 1])
    unchanged = paired_difference(nothing, nothing, codes)
    assert bounds(unchanged) == pytest.approx([-(z**2) / (12 + z**2), z**2 / (12 + z**2)])
    assert proportion_interval(nothing, codes) == cluster_bootstrap(nothing, codes)
    counts = cluster_bootstrap(nothing, codes, method="studentized")  # of events there may be more than one
    assert np.isnan(counts.low) and counts.refused


def test_values_of_a_cluster_that_differ_narrow_the_interval_of_a_share():
    codes = np.repeat(np.arange(12), 50)
    apart = np.random.default_rng(25).integers(0, 2, 600)  # about half of every cluster
    alike = (codes % 2).astype(float)  # half of the clusters
    narrow, wide = cluster_bootstrap(apart, codes), cluster_bootstrap(alike, codes)
    assert narrow.high - narrow.low < 0.2 < 0.4 < wide.high - wide.low
    assert bounds(wide) == pytest.approx(bounds(proportion_interval(np.arange(12) % 2)))


def test_an_interval_is_refused_where_too_few_clusters_tell_how_far_one_can_differ():
    values = np.r_[np.zeros(33), 40.0, 50.0, 60.0]
    found = paired_difference(values * 0, values)
    assert np.isnan(found.low) and "too few of the 36 samples differ" in found.refused
    assert np.isfinite(paired_difference(values * 0, np.r_[values[8:], np.arange(8)]).low)


def test_methods_are_refused_where_they_mean_nothing():
    values, codes = np.arange(12.0), np.arange(12)
    for options, message in (
        ({"method": "score"}, "0 or 1"),
        ({"method": "score", "statistic": np.median}, "mean of one array"),
        ({"method": "studentized", "statistic": np.median}, "mean of one array"),
    ):
        with pytest.raises(ValueError, match=message):
            cluster_bootstrap(values, codes, **options)
    for options in ({"method": "score"}, {"method": "score", "relative": True}):
        with pytest.raises(ValueError, match="score"):
            paired_difference(values, values + 1, **options)
    assert cluster_bootstrap(values, codes, np.median).method.endswith("expanded")


def test_one_cluster_that_holds_nearly_all_values_allows_no_interval():
    """Its value decides, whatever the others say; with values shared out evenly the same clusters allow one."""
    rng = np.random.default_rng(0)
    for sizes, allowed in (([500] + [5] * 11, False), ([300, 200] + [5] * 10, False), ([50] * 12, True)):
        clusters = np.repeat(np.arange(12), sizes)
        found = cluster_bootstrap(rng.normal(size=sum(sizes)), clusters)
        assert np.isfinite([found.low, found.high]).all() == allowed
        assert (found.refused == "") == allowed and allowed == ("hold nearly all values" not in found.refused)
