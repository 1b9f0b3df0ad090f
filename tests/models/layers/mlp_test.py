"""The feed-forward layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from matta_jax.models.layers import MLP, Build


def make():
    sizes = {"d_model": 4, "d_ff_granules": 2, "d_ff": 3}
    return MLP(Build(sizes, depth=1, rngs=nnx.Rngs(0)))


def test_is_that_of_gpt2_over_flat_matrices():
    mlp = make()
    mlp.b_in[...] = jnp.arange(6.0).reshape(2, 3) / 6
    mlp.b_out[...] = jnp.arange(4.0)
    x = np.random.default_rng(0).normal(size=(5, 4))
    hidden = x @ np.concatenate(mlp.w_in[...], axis=1) + np.arange(6) / 6
    hidden = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = hidden @ np.concatenate(mlp.w_out[...]) + np.arange(4)
    np.testing.assert_allclose(mlp(jnp.float32(x)), expected, atol=1e-5)


def test_importance_is_the_mean_norm_of_a_neurons_part():
    mlp, x_ND = make(), jax.random.normal(jax.random.key(1), (5, 4))
    hidden_NGF, w_out_GFD = mlp.hidden(x_ND), mlp.w_out[...]
    parts = np.asarray(hidden_NGF)[..., None] * np.asarray(w_out_GFD)
    expected = np.linalg.norm(parts, axis=-1).mean(0)
    np.testing.assert_allclose(mlp.importance(x_ND), expected, rtol=1e-5)
