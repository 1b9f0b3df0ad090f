"""The runs, and the switch, that keep no more than their operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.models._switch import lean_run, lean_switch

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
    lean = lambda weights, x: lean_run(BRANCHES[choice], weights, x, key)
    branch = lambda weights, x: BRANCHES[choice](weights, x, key)
    expected, expected_gradients = jax.value_and_grad(loss(branch), (0, 1))(WEIGHTS, X_ND)
    for run in (chosen, lean):
        value, gradients = jax.jit(jax.value_and_grad(loss(run), (0, 1)))(WEIGHTS, X_ND)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for part, expected_part in zip(
            jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
        ):
            np.testing.assert_allclose(part, expected_part, rtol=1e-5, atol=1e-6)


def shapes_kept(run):
    """Of what the backward pass of a function of weights and a residual stream has."""
    pullback = jax.eval_shape(lambda weights, x: jax.vjp(run, weights, x)[1], WEIGHTS, X_ND)
    return [leaf.shape for leaf in jax.tree.leaves(pullback)]


def test_keeps_its_operands_alone():
    """A plain switch keeps what each of its branches would."""

    def kept(switch):
        key = jax.random.key(0)
        return shapes_kept(lambda weights, x: switch(jnp.int32(0), BRANCHES, weights, x, key))

    operands = {leaf.shape for leaf in (WEIGHTS["w"], X_ND, jnp.int32(0), jax.random.key(0))}
    assert set(kept(lean_switch)) <= operands
    assert len(kept(lean_switch)) <= 4 < len(kept(jax.lax.switch))


def test_a_run_keeps_its_operands_alone():
    def wavy(weights, x, _):
        return jnp.sin(jnp.sin(x @ weights["w"]))

    kept = shapes_kept(lambda weights, x: lean_run(wavy, weights, x, None))
    assert sorted(kept) == sorted([WEIGHTS["w"].shape, X_ND.shape])
    assert len(shapes_kept(lambda weights, x: wavy(weights, x, None))) > 2
