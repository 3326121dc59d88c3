"""Tests of many effects at once: Holm against its definition, and what one verdict may say."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionpulse_analysis.metrics.statistics import Interval, holm, judge, mcnemar, paired_difference, permutation_test


def slow_holm(p):
    """By the closure principle: a null falls only if Bonferroni rejects every intersection that holds it."""
    tests = range(len(p))
    groups = [group for size in range(1, len(p) + 1) for group in itertools.combinations(tests, size)]
    joint = {group: min(1.0, len(group) * min(p[i] for i in group)) for group in groups}
    return [max(value for group, value in joint.items() if i in group) for i in tests]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    assert holm(p) == pytest.approx(slow_holm(p))


def test_a_test_that_was_not_possible_counts_in_the_family():
    assert holm([0.02, float("nan")])[0] == pytest.approx(0.04)
    assert np.isnan(holm([0.02, float("nan")])[1])
    for bad in ([1.5], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="0 to 1"):
            holm(bad)


def effect(estimate, low, high):
    return Interval(estimate, low, high, 36, 36, 0.95, "made up")


def test_a_verdict_comes_out_every_way():
    found = judge(
        {
            "falls": (effect(-5, -8, -2), 0.001),
            "rises": (effect(5, 2, 8), 0.002),
            "alone it would": (effect(-4, -7, -0.1), 0.04),
            "nothing": (effect(0, -1, 1), 1.0),
            "no test": (effect(-3, float("nan"), float("nan")), float("nan")),
        },
        "made up",
    )
    assert [v.decision for v in found.values()] == ["falls", "rises", "not shown", "not shown", "not shown"]
    assert {v.size for v in found.values()} == {5} and found["alone it would"].adjusted == pytest.approx(0.12)
    assert found["nothing"].loses_at_most(1.5) and not found["nothing"].loses_at_most(1)
    assert found["nothing"].gains_at_most(1.5) and not found["rises"].gains_at_most(5)
    assert not found["no test"].loses_at_most(1000)
    assert "0.12 among 5" in str(found["alone it would"]) and "no test" in str(found["no test"])
    assert found["no test"].numbers()["adjusted"] is None
    with pytest.raises(ValueError, match="alpha"):
        judge({}, "none", alpha=5)


def test_the_exact_test_decides_where_an_interval_would_mislead():
    right = np.ones(36)
    pruned = np.r_[np.zeros(5), np.ones(31)]
    change = paired_difference(right, pruned)
    verdict = judge({"five lost of 36": (change, mcnemar(right, pruned).p)}, "one test")["five lost of 36"]
    assert change.high < 0
    assert verdict.p == 0.0625 and verdict.decision == "not shown"


def test_a_family_of_true_nulls_is_called_an_effect_at_most_at_alpha():
    rng, families = np.random.default_rng(20261128), 0
    for _ in range(300):
        pairs = rng.integers(0, 2, (20, 2, 36))  # 20 arms, nothing changes
        tests = {i: (effect(b.mean() - a.mean(), 0, 0), permutation_test(a, b).p) for i, (a, b) in enumerate(pairs)}
        families += any(v.decision != "not shown" for v in judge(tests, "nulls").values())
    assert families / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
