"""The feed-forward layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from matta_jax.models.layers import MLP, Build, GatedMLP


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gated_layer_is_a_gate_times_a_value_in_each_type(dtype):
    sizes = {"d_model": 4, "d_ff_granules": 2, "gate": 2, "d_ff": 3}
    mlp = GatedMLP(Build(sizes, depth=1, rngs=nnx.Rngs(0), options={"gate": "silu"}))
    x_ND = jax.random.normal(jax.random.key(1), (5, 4)).astype(dtype)

    def expected(w_in, w_out, x):
        product = np.einsum("nd,gdcf->ngcf", x, w_in)
        hidden = product[:, :, 0] / (1 + np.exp(-product[:, :, 0])) * product[:, :, 1]
        return np.einsum("ngf,gfd->nd", hidden, w_out)

    graph, state = nnx.split(mlp)

    def loss(state):
        return nnx.merge(graph, state)(x_ND).astype(jnp.float32).sum()

    w_in, w_out = np.array(mlp.w_in[...]), np.array(mlp.w_out[...])
    x = np.array(x_ND.astype(jnp.float32))
    rtol = {"float32": 1e-5, "bfloat16": 4e-2}[dtype]
    value = expected(w_in, w_out, x)
    np.testing.assert_allclose(
        np.float32(mlp(x_ND)), value, rtol=rtol, atol=rtol * np.abs(value).max()
    )
    # Both halves have a gradient: that of small steps.
    gradient = np.array(jax.grad(loss)(state)["w_in"][...])
    for place in ((0, 1, 0, 2), (1, 3, 1, 0)):
        step = np.zeros_like(w_in)
        step[place] = 1e-2
        ahead, behind = (expected(w_in + sign * step, w_out, x).sum() for sign in (1, -1))
        slope = (ahead - behind) / 2e-2
        np.testing.assert_allclose(gradient[place], slope, rtol=0.1, atol=2 * rtol)
