import dataclasses

import jax
import jax.numpy as jnp
import pytest

from matta_jax import optim
from matta_jax.config import ShampooConfig
from matta_jax.optim import scale_by_shampoo

SMALL = ShampooConfig(block_size=8, precondition_every=1, start_step=0, beta2=0.9)


def test_a_block_whose_gradient_is_not_finite_stands_still_and_is_counted(
    apply_shampoo, random_gradients, assert_close
):
    gradients = random_gradients((16, 8), 6)
    healthy, _ = apply_shampoo(SMALL, gradients)
    # The square of the last overflows.
    for bad in (jnp.nan, jnp.inf, 1e30):
        broken = [g.at[9, 2].set(bad) if t == 3 else g for t, g in enumerate(gradients)]
        updates, state = apply_shampoo(SMALL, broken)
        assert all(bool(jnp.all(jnp.isfinite(u))) for u in updates)
        assert bool(jnp.all(updates[3][8:] == 0)) and bool(jnp.any(updates[4][8:] != 0))
        assert_close([u[:8] for u in updates], [u[:8] for u in healthy], rtol=1e-6)
        assert state.buckets["8x8"].failures[:2].tolist() == [0, 1]
        assert float(optim.diagnostics((state,))["shampoo_failures"]) == 1


@pytest.mark.slow
def test_a_block_without_gradient_stays_finite_for_three_thousand_steps(random_gradients):
    transform = scale_by_shampoo(dataclasses.replace(SMALL, precondition_every=10))
    gradient = jnp.zeros((16, 8)).at[:8].set(random_gradients((8, 8), 1)[0])

    # The first block has a gradient for ten steps, then none; the second never has one.
    def step(state, t):
        _, state = transform.update(jnp.where(t < 10, gradient, 0.0), state)
        return state, None

    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(3000)))
    state, _ = run(transform.init(gradient))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    blocks = state.buckets["8x8"]
    assert blocks.failures[:2].tolist() == [0, 0] and int(blocks.age[1]) == -1

    update, state = transform.update(gradient + 1.0, state)
    assert bool(jnp.all(jnp.isfinite(update))) and bool(jnp.all(update[8:] != 0))
