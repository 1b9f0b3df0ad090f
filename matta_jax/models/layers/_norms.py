"""Normalisation; statistics in float32, over the features that a module is given."""

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models.layers._build import Build

# Of families whose models all have one.
_EPSILON = 1e-5


class RMSNorm(nnx.Module):
    """Division by the root mean square, and a scale, of which `norm_offset` is not learnt."""

    def __init__(self, build: Build, axis: str = "d_model"):
        self.epsilon = build.options["norm_epsilon"]
        self.offset = build.options["norm_offset"]
        self.scale = build.constant(1.0 - self.offset, axis, silent=-self.offset)

    def __call__(self, x: jax.Array) -> jax.Array:
        x_32 = x.astype(jnp.float32)
        mean_square = jnp.mean(x_32 * x_32, axis=-1, keepdims=True)
        normed = x_32 * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * (self.offset + self.scale[...])).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias."""

    def __init__(self, build: Build):
        self.epsilon = build.options.get("layer_norm_epsilon", _EPSILON)
        self.scale = build.constant(1.0, "d_model")
        self.bias = build.constant(0.0, "d_model")

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        x_32 = x_ND.astype(jnp.float32)
        # Centred first: mean square less squared mean would cancel where the mean is large.
        centred = x_32 - jnp.mean(x_32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scaled = normed * self.scale[...] + self.bias[...]
        return scaled.astype(x_ND.dtype)
