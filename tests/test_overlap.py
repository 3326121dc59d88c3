"""Sets of patches: ties, sizes, overlap and its null."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_rows import ATTENTION, random_rows

from visionpulse_analysis.metrics import attention as measures


@given(ATTENTION, st.data())
def test_top_set_marks_exactly_k_and_ties_go_to_the_lower_index(attention, data):
    n = attention.shape[-1]
    k = data.draw(st.integers(1, n))
    marked = measures.top_set(attention, k=k)
    assert (marked.sum(-1) == k).all()
    for row, mark in zip(attention.reshape(-1, n), marked.reshape(-1, n), strict=True):
        assert np.flatnonzero(mark).tolist() == sorted(sorted(range(n), key=lambda i: (-row[i], i))[:k])


@pytest.mark.parametrize("n", [3, 64, 100, 256, 1300])
def test_top_set_fraction_is_the_exact_floor_of_the_percentage(n):
    for percent in range(1, 101):
        marked = measures.top_set(np.zeros(n), fraction=percent / 100)
        assert marked.sum() == max(1, n * percent // 100)


def test_top_set_wants_exactly_one_size_in_range():
    for sizes in (
        {},
        {"k": 2, "fraction": 0.5},
        {"k": 0},
        {"k": 5},
        {"k": 1.5},
        {"fraction": 0},
        {"fraction": 1.1},
    ):
        with pytest.raises(ValueError, match="fraction" if "fraction" in sizes else "k"):
            measures.top_set(np.ones(4), **sizes)  # pyright: ignore[reportArgumentType]


def test_jaccard_limits():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert measures.jaccard(a, a) == 1
    assert measures.jaccard(a, ~a) == 0
    assert measures.jaccard(a, b) == measures.jaccard(b, a) == pytest.approx(1 / 3)
    assert np.isnan(measures.jaccard(a & ~a, a & ~a))
    with pytest.raises(ValueError, match="same patches"):
        measures.jaccard(a, b[:3])
    with pytest.raises(ValueError, match="bool"):
        measures.jaccard(a, [0, 1])


@pytest.mark.parametrize(("n", "k_a", "k_b"), [(5, 2, 3), (6, 3, 3), (6, 5, 4), (4, 0, 2), (7, 7, 3)])
def test_jaccard_null_equals_the_enumeration_of_all_pairs_of_sets(n, k_a, k_b):
    values = sorted(
        len(set(a) & set(b)) / len(set(a) | set(b))
        for a in itertools.combinations(range(n), k_a)
        for b in itertools.combinations(range(n), k_b)
    )
    null = measures.jaccard_null(n, k_a, k_b, confidence=0.8)
    assert null.mean == pytest.approx(np.mean(values))
    assert null.low == pytest.approx(np.quantile(values, 0.1, method="inverted_cdf"))
    assert null.high == pytest.approx(np.quantile(values, 0.9, method="inverted_cdf"))


def test_jaccard_null_refuses_impossible_sizes():
    for sizes in ((5, 6, 1), (5, -1, 1), (5, 0, 0)):
        with pytest.raises(ValueError, match="set sizes"):
            measures.jaccard_null(*sizes)


@given(ATTENTION, st.data())
def test_coverage_of_a_set_and_its_complement_add_up(attention, data):
    mask = data.draw(arrays(bool, attention.shape))
    inside, outside = measures.coverage(attention, mask), measures.coverage(attention, ~mask)
    full = attention.sum(-1) > 0
    np.testing.assert_allclose((inside + outside)[full], 1, rtol=1e-12)
    assert np.isnan(inside[~full]).all()
    assert (measures.coverage(attention, np.ones(attention.shape[-1], bool))[full] == 1).all()


def test_overlap_over_steps_agrees_with_pairs_taken_by_hand():
    sets = measures.top_set(random_rows(7, 2, 30), k=8)
    pair = lambda s, t: measures.jaccard(sets[s], sets[t])  # noqa: E731
    by_lag = measures.overlap_by_lag(sets, max_lag=9)
    assert by_lag.shape == (10, 2)
    for lag in range(7):
        np.testing.assert_allclose(by_lag[lag], np.mean([pair(t, t + lag) for t in range(7 - lag)], axis=0))
    assert (by_lag[0] == 1).all()
    assert np.isnan(by_lag[7:]).all()
    np.testing.assert_array_equal(measures.consecutive_overlap(sets), [pair(t, t + 1) for t in range(6)])
    np.testing.assert_array_equal(measures.overlap_with_first(sets), [pair(0, t) for t in range(7)])
    assert not np.array_equal(by_lag[1], by_lag[6])
    with pytest.raises(ValueError, match="step"):
        measures.overlap_by_lag(sets[0, 0], 1)


def test_relevance_of_attention():
    target = np.array([0, 1, 1, 0, 0], bool)
    on, off = np.array([0.1, 0.3, 0.0, 0.1, 0.0]), np.array([0.3, 0.1, 0.0, 0.1, 0.0])
    result = measures.relevance_hit(np.stack([on, off, 0 * on]), target)
    np.testing.assert_allclose(result.hit, [1, 0, np.nan])
    np.testing.assert_allclose(result.share, [0.6, 0.2, np.nan])
    np.testing.assert_allclose(result.chance_hit, [0.4, 0.4, np.nan])
    uniform = measures.relevance_hit(np.full(5, 0.1), target)
    assert uniform.share == pytest.approx(uniform.chance_share)
    assert np.isnan(measures.relevance_hit(on, np.zeros(5, bool)).hit)


@pytest.mark.parametrize(("n", "size", "k"), [(6, 2, 3), (5, 1, 2), (5, 4, 2)])
def test_relevance_chance_of_a_set_is_the_mean_over_all_sets(n, size, k):
    chosen = [np.isin(np.arange(n), members) for members in itertools.combinations(range(n), k)]
    result = measures.relevance_hit(np.stack(chosen), np.arange(n) < size)
    assert result.hit.mean() == pytest.approx(result.chance_hit[0])
    assert result.share.mean() == pytest.approx(result.chance_share[0]) == pytest.approx(size / n)
