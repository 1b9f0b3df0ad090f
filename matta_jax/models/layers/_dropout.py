"""Dropout as a function of its key."""

import jax
import jax.numpy as jnp


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout; nothing is dropped without a key."""
    if key is None or not rate:
        return x
    # What stays is scaled up, so that the expected value is that of a pass without dropout.
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    scaled = x / (1 - rate)
    return jnp.where(keep, scaled, 0).astype(x.dtype)
