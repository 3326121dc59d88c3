"""Values that come in clusters, for the tests of statistics."""

import numpy as np


def clustered(rng, n_clusters, spread=0.5):
    """Values around a true mean of 0: strong cluster effects, 5 to 15 values per cluster."""
    codes = np.repeat(np.arange(n_clusters), rng.integers(5, 16, n_clusters))
    return rng.normal(size=n_clusters)[codes] + spread * rng.normal(size=len(codes)), codes


def bounds(interval):
    return [interval.low, interval.high]


# ---- bootstrap ----
