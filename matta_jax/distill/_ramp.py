"""The ramp of the distillation weight."""

import jax
import jax.numpy as jnp


def ramp(step: jax.Array | int, *, num_steps: int, fraction: float, shape: str) -> jax.Array:
    """Returns how far the distillation weight has risen at `step`, in [0, 1]; a traced value, so it
    never recompiles.

    Args:
      step: optimiser steps done.
      num_steps: length of the run.
      fraction: share of the run over which the weight rises from 0; 0 starts at 1.
      shape: `linear`, `cosine` (half a period), or `constant` (1 throughout).
    """
    length = fraction * num_steps
    if shape == "constant" or length == 0:
        return jnp.ones(())
    linear = jnp.clip(jnp.asarray(step, jnp.float32) / length, 0.0, 1.0)
    return linear if shape == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * linear)
