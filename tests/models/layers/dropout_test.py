"""Dropout."""

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.models.layers import drop

X = jnp.ones((100, 100), jnp.bfloat16)


def test_nothing_is_dropped_without_a_key_or_a_rate():
    assert drop(X, 0.5, None) is X
    assert drop(X, 0.0, jax.random.key(0)) is X


def test_entries_are_dropped_at_their_rate_and_the_others_scaled():
    dropped = drop(X, 0.25, jax.random.key(0))
    assert dropped.dtype == X.dtype
    assert set(np.unique(np.float32(dropped))) == {0, np.float32(jnp.bfloat16(4 / 3))}
    # Four standard deviations of 10000 draws.
    assert abs(float((dropped == 0).mean()) - 0.25) < 4 * (0.25 * 0.75 / 1e4) ** 0.5
    np.testing.assert_array_equal(dropped, drop(X, 0.25, jax.random.key(0)))
    assert not np.array_equal(dropped, drop(X, 0.25, jax.random.key(1)))
