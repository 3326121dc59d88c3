"""Tests against a null: independent slow loops, and rejection of a true null at its level."""

import itertools

import numpy as np
import pytest
from clusters import clustered
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from visionpulse_analysis.metrics import attention as measures
from visionpulse_analysis.metrics.statistics import correlation, mcnemar, permutation_test, shape_permutation_null


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_counts_the_table_and_sums_the_binomial(pairs):
    a, b = np.array(pairs).T
    table = np.array([[np.sum((a == i) & (b == j)) for j in (True, False)] for i in (True, False)])
    result = mcnemar(a, b)
    assert (result.b, result.c) == (table[0, 1], table[1, 0])
    n, few = result.b + result.c, min(result.b, result.c)
    assert result.p == pytest.approx(min(1.0, 2 * stats.binom.cdf(few, n, 0.5)))
    assert mcnemar(b, a).p == result.p


def test_mcnemar_rejects_a_true_null_at_most_at_its_level():
    rng, level = np.random.default_rng(20260602), 0.05
    easy = rng.random((2000, 100, 1)) < 0.7  # scenes differ in difficulty, both runs alike
    right = rng.random((2000, 100, 2)) < np.where(easy, 0.95, 0.4)
    rejected = np.mean([mcnemar(a, b).p <= level for a, b in np.moveaxis(right, -1, 1)])
    assert 0.005 < rejected <= level


def test_permutation_test_enumerates_all_signs_of_clusters():
    rng = np.random.default_rng(10)
    a, codes = clustered(rng, 7)
    b = a + 0.4 + rng.normal(size=7)[codes]
    sums = np.bincount(codes, b - a)
    null = [abs(np.dot(signs, sums)) for signs in itertools.product([1, -1], repeat=7)]
    result = permutation_test(a, b, codes)
    assert result.p == pytest.approx(np.mean(np.array(null) >= abs(sums.sum()) - 1e-12))
    assert result.difference == pytest.approx(np.mean(b - a))
    assert permutation_test(b, a, codes).p == result.p
    assert permutation_test(a, a, codes).p == 1


def test_permutation_test_rejects_a_true_null_at_its_level_and_steps_would_not():
    rng, level, n = np.random.default_rng(20260603), 0.05, 1500
    by_cluster = by_step = 0
    for simulation in range(n):
        difference, codes = clustered(rng, 20)
        zero = np.zeros_like(difference)
        by_cluster += permutation_test(zero, difference, codes, n_permutations=399, seed=simulation).p <= level
        by_step += (
            permutation_test(zero, difference, n_permutations=399, seed=simulation).p <= level
            if simulation < 200
            else 0
        )
    assert abs(by_cluster / n - level) <= 3 * np.sqrt(level * (1 - level) / n)
    assert by_step / 200 > 0.3


def traces(rng, n_samples=6, n_steps=12, n_patches=40, link=0.0):
    """Rows of random mass; with link > 0 rows of larger mass are more spread out, beyond scaling."""
    samples = []
    for _ in range(n_samples):
        mass = rng.beta(2, 5, size=n_steps)
        sharpness = 1.2 + rng.normal(size=n_steps) * 0.4 - link * (mass - mass.mean())
        shape = np.exp(np.maximum(sharpness, 0.1)[:, None] * rng.normal(size=(n_steps, n_patches)))
        samples.append(mass[:, None] * shape / shape.sum(-1, keepdims=True))
    return samples


def slow_shape_null(samples, threshold, n, seed):
    """The same null with plain loops; only the drawing of random orders is shared with the package."""
    rng = np.random.default_rng(seed)
    rows = [row for sample in samples for row in sample]
    group = np.repeat(np.arange(len(samples)), [len(sample) for sample in samples])
    orders = np.argsort(group + rng.random((n, len(rows))), axis=1)
    mass = np.array([row.sum() for row in rows])
    for order in orders:
        assert (group[order] == group).all()
        count = [int((rows[j] / mass[j] * mass[i] > threshold).sum()) for i, j in enumerate(order)]
        yield stats.pearsonr(mass, count)[0]


def test_shape_null_equals_a_slow_loop_over_the_same_permutations():
    samples = traces(np.random.default_rng(11))
    null = np.array(list(slow_shape_null(samples, 0.01, 50, seed=2)))
    result = shape_permutation_null(samples, 0.01, n_permutations=50, seed=2)
    assert [result.mean, result.low, result.high] == pytest.approx([null.mean(), *np.quantile(null, [0.025, 0.975])])
    extreme = min((null >= result.r).sum(), (null <= result.r).sum())
    assert result.p == pytest.approx(min(1, 2 * (extreme + 1) / 51))


def test_shape_null_is_that_of_all_orders_there_are():
    samples = traces(np.random.default_rng(18), n_samples=2, n_steps=4)
    rows, mass = np.concatenate(samples), np.concatenate(samples).sum(1)
    both = itertools.product(itertools.permutations(range(4)), itertools.permutations(range(4, 8)))
    orders = [(*first, *second) for first, second in both]
    count = [[(rows[j] / mass[j] * mass[i] > 0.01).sum() for i, j in enumerate(order)] for order in orders]
    null = np.array([stats.pearsonr(mass, one)[0] for one in count])
    result = shape_permutation_null(samples, 0.01, n_permutations=20_000)
    assert result.r == pytest.approx(null[0])  # every shape in its own place
    assert [result.mean, result.low, result.high] == pytest.approx(
        [null.mean(), *np.quantile(null, [0.025, 0.975])], abs=0.02
    )
    tail = min((null >= null[0] - 1e-12).mean(), (null <= null[0] + 1e-12).mean())
    assert result.p == pytest.approx(min(1, 2 * tail), abs=4 * np.sqrt(tail / 20_000) + 1e-3)


@pytest.mark.parametrize("kind", ["pooled", "within"])
@pytest.mark.parametrize("relative", [False, True])
def test_shape_null_observes_the_correlation_of_mass_and_active_count(kind, relative):
    samples = traces(np.random.default_rng(12)) + traces(np.random.default_rng(13), n_patches=25)
    samples[0][3] = 0  # a step without mass stays in the correlation with its count of 0
    threshold = 1.0 if relative else 0.01
    mass = np.concatenate([measures.attention_mass(s) for s in samples])
    count = np.concatenate([measures.active_count(s, threshold, relative=relative) for s in samples])
    codes = np.repeat(np.arange(len(samples)), [len(s) for s in samples])
    result = shape_permutation_null(samples, threshold, relative=relative, kind=kind)
    assert result.r == pytest.approx(correlation(mass, count, codes, kind=kind).value)


def test_shape_null_rejects_a_true_null_at_its_level():
    rng, level, n = np.random.default_rng(20260604), 0.05, 1500
    results = [shape_permutation_null(traces(rng), 0.01, n_permutations=199, seed=i) for i in range(n)]
    rejected = np.mean([result.p <= level for result in results])
    assert abs(rejected - level) <= 3 * np.sqrt(level * (1 - level) / n)
    assert np.mean([result.r for result in results]) > 0.7  # a large r, and still nothing beyond the null


def test_shape_null_finds_a_link_beyond_scaling():
    result = shape_permutation_null(traces(np.random.default_rng(14), n_samples=20, link=3.0), 0.01)
    assert result.r > result.high
    assert result.p < 0.05


def test_shape_null_of_constant_shapes_is_the_observation_itself():
    mass = np.linspace(0.1, 0.9, 12)
    result = shape_permutation_null([mass[:, None] * np.linspace(1, 2, 30) / 45], 0.01)
    assert result.low == pytest.approx(result.r) == pytest.approx(result.high)
    assert result.p == 1


def test_shape_null_is_nan_for_a_constant_count():
    for samples in (traces(np.random.default_rng(15)), [np.zeros((3, 4))]):
        result = shape_permutation_null(samples, 2.0)
        assert np.isnan([result.r, result.mean, result.low, result.high, result.p]).all()


def test_whole_numbers_are_tested_over_all_signs_however_many_clusters_there_are():
    rng = np.random.default_rng(17)
    difference = rng.integers(-6, 8, 60)
    exact = permutation_test(np.zeros(60), difference)
    sampled = permutation_test(np.zeros(60), difference / 2, n_permutations=20_000)  # no whole numbers
    assert exact.p == pytest.approx(sampled.p, abs=4 * np.sqrt(0.25 / 20_000))
    # 60 equal steps one way: two patterns of 2**60, far beyond what sampling can tell.
    assert permutation_test(np.zeros(60), np.full(60, 3)).p == pytest.approx(2 / 2**60)
    assert permutation_test(difference, difference).p == 1
