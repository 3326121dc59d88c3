"""Measures: limits and identities first, then independent slow computations, then invalid neighbours."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_rows import ATTENTION, random_rows

from visionpulse_analysis.metrics import attention as measures

settings.register_profile("loaded machine", deadline=None)


settings.load_profile("loaded machine")


USAGE = [measures.participation_ratio, measures.effective_count, measures.patches_for_share]


@pytest.mark.parametrize("n", [1, 2, 10, 256])
def test_uniform_and_one_hot_are_the_limits(n):
    uniform, one_hot = np.full(n, 0.3 / n), 0.3 * np.eye(n)[n // 2]
    assert measures.entropy_bits(uniform) == pytest.approx(np.log2(n), abs=1e-12)
    assert measures.entropy_bits(one_hot) == 0
    for usage in (measures.participation_ratio, measures.effective_count):
        assert usage(uniform) == pytest.approx(n, rel=1e-12)
        assert usage(one_hot) == pytest.approx(1, rel=1e-12)
    assert measures.patches_for_share(uniform, 1.0) == n
    assert measures.patches_for_share(one_hot, 1.0) == 1


@pytest.mark.parametrize("percent", [10, 50, 90, 95, 100])
def test_patches_for_share_of_uniform_attention_is_not_off_by_one_from_rounding(percent):
    for n in range(1, 300):
        assert measures.patches_for_share(np.full(n, 0.3 / n), percent / 100) == -(-n * percent // 100)


@given(ATTENTION)
def test_usage_is_between_1_and_n_ordered_and_nan_only_without_mass(attention):
    n, empty = attention.shape[-1], attention.sum(-1) == 0
    for usage in USAGE:
        value = usage(attention)
        assert value.shape == attention.shape[:-1]
        assert np.array_equal(np.isnan(value), empty)
        assert ((value >= 1 - 1e-9) & (value <= n + 1e-9) | empty).all()
    participation, effective = measures.participation_ratio(attention), measures.effective_count(attention)
    assert (participation <= effective * (1 + 1e-9))[~empty].all()  # Renyi entropies fall with their order


@given(ATTENTION, st.floats(1e-3, 1.0), st.randoms(use_true_random=False))
def test_usage_ignores_scale_and_the_order_of_patches(attention, scale, random):
    order = random.sample(range(attention.shape[-1]), attention.shape[-1])
    for usage in USAGE:
        np.testing.assert_allclose(usage(scale * attention[..., order]), usage(attention), rtol=1e-9)


@given(ATTENTION)
def test_normalise_keeps_the_shape_and_the_mass_gives_it_back(attention):
    shape, mass = measures.normalise(attention), measures.attention_mass(attention)
    assert np.isnan(shape[mass == 0]).all()
    np.testing.assert_allclose(shape[mass > 0].sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose((shape * mass[..., None])[mass > 0], attention[mass > 0], rtol=1e-12)


@given(ATTENTION, st.floats(0.05, 1.0))
def test_patches_for_share_is_the_smallest_such_number(attention, share):
    for row in attention.reshape(-1, attention.shape[-1]):
        if row.sum() > 0:
            falling = sorted(row, reverse=True)
            slow = next(k for k in range(1, len(row) + 1) if sum(falling[:k]) >= share * sum(falling) * (1 - 1e-12))
            assert measures.patches_for_share(row, share) == slow


def test_active_count_is_strict_takes_several_thresholds_and_multiples_of_uniform():
    row = np.array([0.1, 0.2, 0.2, 0.3])
    assert measures.active_count(row, 0.2) == 1
    assert measures.active_count(row, [0.05, 0.1, 0.3]).tolist() == [4, 3, 0]
    assert measures.active_count(row, 0.5, relative=True) == measures.active_count(row, 0.125) == 3
    many = random_rows(5, 3, 1280)
    counts = measures.active_count(many, measures.PAPER_THRESHOLDS)
    assert counts.shape == (5, 3, 4)
    assert (np.diff(counts, axis=-1) < 0).all()


def test_half_precision_is_summed_in_higher_precision():
    row = random_rows(4096).astype(np.float16)
    exact = row.astype(np.float64)
    assert abs(row.sum() - exact.sum()) > 1e-6  # so that the comparison can fail
    assert measures.attention_mass(row) == exact.sum()
    assert measures.entropy_bits(row) == measures.entropy_bits(exact)


def test_centre_of_mass_and_drift():
    row, col = np.divmod(np.arange(12), 4)
    one_hot = np.eye(12)[[0, 7, 7]]
    assert measures.centre_of_mass(one_hot, row, col).tolist() == [[0, 0], [1, 3], [1, 3]]
    assert measures.centre_of_mass(np.full(12, 0.01), row, col) == pytest.approx([1, 1.5])
    assert measures.centre_drift(one_hot, row, col) == pytest.approx([np.hypot(1, 3), 0])
    with_layers = random_rows(5, 3, 12)
    assert measures.centre_drift(with_layers, row, col)[:, 1] == pytest.approx(
        measures.centre_drift(with_layers[:, 1], row, col)
    )
    with pytest.raises(ValueError, match="12 patches"):
        measures.centre_of_mass(one_hot, row[:4], col[:4])


# ---- layers and distributions ----


def test_layer_similarity_is_the_mean_over_steps_of_the_cosine():
    attention = random_rows(6, 4, 20)
    slow = np.zeros((4, 4))
    for step, a, b in itertools.product(range(6), range(4), range(4)):
        u, v = attention[step, a], attention[step, b]
        slow[a, b] += u @ v / np.sqrt(u @ u) / np.sqrt(v @ v) / 6
    similarity = measures.layer_similarity(attention)
    np.testing.assert_allclose(similarity, slow, rtol=1e-12)
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-12)
    orthogonal = np.eye(4)[None]
    np.testing.assert_array_equal(measures.layer_similarity(orthogonal), np.eye(4))


def test_layer_similarity_leaves_out_steps_without_mass_and_survives_tiny_rows():
    attention = random_rows(3, 2, 8)
    attention[1, 0] = 0
    np.testing.assert_allclose(
        measures.layer_similarity(attention)[0, 1], measures.layer_similarity(attention[[0, 2]])[0, 1]
    )
    attention[:, 0] = 0
    assert np.isnan(measures.layer_similarity(attention)[0]).all()
    tiny = random_rows(3, 2, 8) * 1e-200
    np.testing.assert_allclose(measures.layer_similarity(tiny), measures.layer_similarity(random_rows(3, 2, 8)))


def test_kl_divergence_limits_and_known_cases():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    assert measures.kl_divergence(log_p, log_p) == 0
    assert measures.kl_divergence(log_p, log_q) == pytest.approx(np.log(2))
    assert measures.kl_divergence(log_q, log_p) == np.inf
    shifted = measures.kl_divergence(log_p + 0.005, log_q - 0.005)  # as rounding in half precision may do
    assert shifted == pytest.approx(np.log(2))
    far = np.array([0.0, -2000.0]), np.array([-2000.0, 0.0])  # the probabilities themselves underflow
    assert measures.kl_divergence(*far) == pytest.approx(2000)


@given(arrays(np.float32, (2, 3, 7), elements=st.floats(-30, 30, width=32)))
def test_kl_divergence_is_never_negative_also_from_rounded_log_softmax(logits):
    logp, logq = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    value = measures.kl_divergence(logp, logq)
    assert value.shape == (3,)
    assert (value >= 0).all()
    assert (measures.kl_divergence(logp, logp) == 0).all()


def test_kl_divergence_refuses_logits_and_nan():
    for bad in (np.array([3.0, 1.0]), np.array([np.nan, 0.0]), np.array([-np.inf, -np.inf])):
        with pytest.raises(ValueError, match="log-probabilities"):
            measures.kl_divergence(bad, np.log([0.5, 0.5]))
    with pytest.raises(ValueError, match="same tokens"):
        measures.kl_divergence(np.log([0.5, 0.5]), np.log([0.5, 0.25, 0.25]))


# ---- invalid input ----


MEASURES = {
    "attention_mass": measures.attention_mass,
    "active_count": lambda a: measures.active_count(a, 0.001),
    "normalise": measures.normalise,
    "participation_ratio": measures.participation_ratio,
    "entropy_bits": measures.entropy_bits,
    "effective_count": measures.effective_count,
    "patches_for_share": measures.patches_for_share,
    "centre_of_mass": lambda a: measures.centre_of_mass(a, range(4), range(4)),
    "layer_similarity": lambda a: measures.layer_similarity(a[None]),
    "top_set": lambda a: measures.top_set(a, k=1),
    "coverage": lambda a: measures.coverage(a, np.ones(4, bool)),
    "relevance_hit": lambda a: measures.relevance_hit(a, np.ones(4, bool)),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.25])
def test_nan_infinite_and_negative_weights_are_refused_with_their_place(name, bad):
    attention = np.full((3, 4), 0.1)
    MEASURES[name](attention)
    attention[2, 1] = bad
    with pytest.raises(ValueError, match=re.escape(f"{bad} at [") + r".*2, 1\]"):
        MEASURES[name](attention)


def test_other_invalid_input():
    with pytest.raises(ValueError, match=r"got shape \(3, 0\)"):
        measures.attention_mass(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="real numbers"):
        measures.attention_mass(["a"])
    with pytest.raises(ValueError, match="threshold"):
        measures.active_count(np.ones(3), -1)
    for share in (0, 1.1, np.nan):
        with pytest.raises(ValueError, match="share"):
            measures.patches_for_share(np.ones(3), share)
