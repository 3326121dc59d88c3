"""Pairs of traces: what was cut off stands apart, and lengths are of the pairs that ended both times."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.metrics.statistics import mcnemar, permutation_test, proportion_interval
from visionpulse_analysis.studies.shared.arms import compare

LIMIT = 96


def rows(tokens, finished, samples=None, **columns):
    """Traces of one arm; samples that repeat are decoded with several seeds."""
    samples = np.arange(len(tokens)) if samples is None else samples
    found = pd.DataFrame({"tokens": tokens, "finished": finished, "sample": samples, "kept": 1.0, **columns})
    return found.assign(seed=found.groupby("sample").cumcount())


def paired_lengths(dense, arm, dense_finished, arm_finished, samples=None):
    return compare(rows(dense, dense_finished, samples), rows(arm, arm_finished, samples))


def test_traces_that_never_end_do_not_lengthen_those_that_do():
    dense = np.full(36, 20)
    arm = np.r_[np.full(7, LIMIT), np.full(29, 20), []]
    ended = np.ones(36, bool)
    found = paired_lengths(dense, arm, ended, arm < LIMIT)
    assert (found.n_pairs, found.n_both) == (36, 29)
    assert (found.tokens.value, found.length.value, found.p) == (0, 0, 1)
    assert (found.dense_length.value, found.arm_length.value) == (20, 20)
    cut = found.cut_off
    assert (cut.n_dense, cut.n_arm, cut.only_dense, cut.only_arm) == (0, 7, 0, 7)
    assert (cut.at_least, np.isnan(cut.at_most)) == (LIMIT - 20, True)
    assert cut.p == 2 / 2**7 and cut.change.value == pytest.approx(7 / 36)
    assert cut.dense == proportion_interval(np.zeros(36))  # none of 36 is still up to 10 %
    assert 0.09 < cut.dense.high < 0.10


def test_a_trace_that_ends_at_the_limit_is_not_cut_off():
    found = paired_lengths([10, 10], [LIMIT, LIMIT], [True, True], [True, False])
    assert (found.n_both, found.cut_off.n_arm, found.tokens.value) == (1, 1, LIMIT - 10)


def test_dense_traces_may_be_the_ones_cut_off():
    found = paired_lengths([LIMIT, 30, LIMIT], [40, 20, LIMIT], [False, True, False], [True, True, False])
    assert (found.cut_off.only_dense, found.cut_off.only_arm, found.cut_off.at_most) == (1, 0, 40 - LIMIT)
    assert found.tokens.value == -10 and found.shorter.value == 1


def test_where_no_pair_ended_lengths_are_not_known_and_it_says_why():
    found = paired_lengths([LIMIT] * 8, [LIMIT] * 8, [False] * 8, [False] * 8)
    assert np.isnan([found.tokens.value, found.length.value, found.p, found.longer.value]).all()
    assert "no pair ended" in found.tokens.refused
    assert found.cut_off.arm.value == 1 and found.cut_off.p == 1
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["tokens"]["estimate"] is None


def test_seeds_of_a_sample_are_kept_together():
    rng = np.random.default_rng(3)
    clusters = np.tile(np.arange(9), 4)
    dense = rng.integers(10, 40, 36)
    arm = dense - rng.integers(0, 5, 9)[clusters]
    found = paired_lengths(dense, arm, np.ones(36), np.ones(36), clusters)
    sums = np.bincount(clusters, arm - dense)
    null = [abs(np.dot(signs, sums)) for signs in itertools.product([1, -1], repeat=9)]
    assert found.p == pytest.approx(np.mean(np.array(null) >= abs(sums.sum())))
    assert found.tokens.n_clusters == found.cut_off.arm.n_clusters == 9


@pytest.mark.parametrize("seed", range(3))
def test_with_one_seed_the_test_of_accuracy_is_mcnemars(seed):
    a, b = np.random.default_rng(seed).random((2, 60)) < [[0.8], [0.5]]
    found = compare(*(rows([9] * 60, True, right=right) for right in (a, b))).truth
    assert found.p == pytest.approx(mcnemar(a, b).p)
    assert (found.lost, found.won) == (int((a & ~b).sum()), int((b & ~a).sum()))
    assert found.change.value == pytest.approx((found.won - found.lost) / 60)
    assert found.p == permutation_test(a, b, np.arange(60)).p


def test_traces_without_a_partner_are_left_out():
    found = compare(rows([5, 6, 7], True), rows([7, 5], True, [2, 0]))
    assert (found.n_pairs, found.equal.value) == (2, 1)
