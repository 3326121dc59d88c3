"""Rows of attention for the tests of measures and sets."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

ATTENTION = arrays(
    np.float64,
    array_shapes(min_dims=1, max_dims=3, max_side=9),
    elements=st.sampled_from([0, 1e-7, 0.01, 0.2, 0.5]),
)


def random_rows(*shape, seed=0):
    rows = np.random.default_rng(seed).lognormal(0, 1.5, shape)
    return 0.4 * rows / rows.sum(-1, keepdims=True)


# ---- one row ----
