"""The switch that keeps no more than its operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.models._switch import lean_switch

BRANCHES = [
    lambda weights, x, key: jnp.sin(x @ weights["w"]),
    lambda weights, x, key: x * weights["w"][0] + jax.random.normal(key, x.shape),
    lambda weights, x, key: x,
]
WEIGHTS = {"w": jnp.arange(9.0).reshape(3, 3) / 9}
X_ND = jnp.arange(6.0).reshape(2, 3) / 6


@pytest.mark.parametrize("choice", range(3))
def test_has_the_value_and_the_gradients_of_its_branch(choice):
    key = jax.random.key(0)

    def loss(run):
        return lambda weights, x: jnp.sum(run(weights, x) ** 3)

    chosen = lambda weights, x: lean_switch(jnp.int32(choice), BRANCHES, weights, x, key)
    branch = lambda weights, x: BRANCHES[choice](weights, x, key)
    value, gradients = jax.jit(jax.value_and_grad(loss(chosen), (0, 1)))(WEIGHTS, X_ND)
    expected, expected_gradients = jax.value_and_grad(loss(branch), (0, 1))(WEIGHTS, X_ND)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for part, expected_part in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(part, expected_part, rtol=1e-5, atol=1e-6)


def test_keeps_its_operands_alone():
    """A plain switch keeps what each of its branches would."""

    def num_kept(switch):
        run = lambda weights, x: switch(jnp.int32(0), BRANCHES, weights, x, jax.random.key(0))
        pullback = jax.eval_shape(lambda weights, x: jax.vjp(run, weights, x)[1], WEIGHTS, X_ND)
        return [leaf.shape for leaf in jax.tree.leaves(pullback)]

    operands = {leaf.shape for leaf in (WEIGHTS["w"], X_ND, jnp.int32(0), jax.random.key(0))}
    assert set(num_kept(lean_switch)) <= operands
    assert len(num_kept(lean_switch)) <= 4 < len(num_kept(jax.lax.switch))
