"""What Shampoo has to say of itself in a run's metrics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.optim._state import find_shampoo


def diagnostics(opt_state: Any) -> dict[str, jax.Array]:
    """Returns the sum of `failures` and the largest `residual` of the Shampoo in a chain; {} where
    there is none.
    """
    state = find_shampoo(opt_state)
    if state is None:
        return {}

    # Sums and maxima alone, so that a step's metrics cost no transfer of blocks.
    failures = state.failures
    for blocks in state.buckets.values():
        failures = failures + jnp.sum(blocks.failures)

    # A model of vectors has no buckets, and a residual of 0.
    residuals = [jnp.max(blocks.residual) for blocks in state.buckets.values()]
    largest_residual = functools.reduce(jnp.maximum, residuals, jnp.zeros(()))
    return {
        "shampoo_failures": failures.astype(jnp.float32),
        "shampoo_residual": largest_residual,
    }
