"""Layer normalisation."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from matta_jax.models.layers import Build, LayerNorm


def make(size):
    return LayerNorm(Build({"d_model": size}, depth=1, rngs=nnx.Rngs(0)))


def test_is_that_of_its_description():
    norm = make(8)
    norm.scale[...] = jnp.arange(8.0)
    norm.bias[...] = -jnp.arange(8.0)
    x = np.random.default_rng(0).normal(2, 3, (5, 8))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = normed * np.arange(8) - np.arange(8)
    np.testing.assert_allclose(norm(jnp.float32(x)), expected, atol=2e-5)


def test_begins_as_the_identity_of_normed_vectors():
    np.testing.assert_allclose(make(2)(jnp.array([[1.0, -1.0]])), [[1, -1]], atol=1e-5)
    assert not make(2)(jnp.full((1, 2), 3.0)).any()


def test_statistics_are_of_float32():
    """In bfloat16 these entries would all be their mean."""
    x_ND = jnp.bfloat16([[256.0, 258.0, 260.0, 262.0]])
    normed = make(4)(x_ND)
    assert normed.dtype == jnp.bfloat16
    expected = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    np.testing.assert_allclose(np.float32(normed[0]), expected, atol=0.01)
