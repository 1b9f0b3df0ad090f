"""Similarity of texts: what is read, and that cosines are set against people's scores."""

import numpy as np
import pytest
import scipy.stats

from matta_jax.evaluation import _sts


def test_the_interval_is_of_the_correlation():
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = a + rng.normal(size=400)
    value = _sts.spearman(a, b)
    assert value == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    low, high = _sts._interval(value, 400)
    assert low < value < high and high - low == pytest.approx(0.12, abs=0.03)
    assert _sts.spearman(a, np.ones(400)) == 0
