import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from matta_jax.config import ShampooConfig
from matta_jax.optim import scale_by_shampoo

SMALL = ShampooConfig(block_size=8, precondition_every=1, start_step=0, beta2=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("grafting", ["rmsprop", "adam", "sgd"])
def test_any_tree_goes(grafting, apply_shampoo):
    tree = {
        "scalar": jnp.ones(()),
        "vector": jnp.ones(5),
        "odd": jnp.ones((3, 1)),
        "matrix": jnp.ones((9, 17)),
        "conv": jnp.ones((2, 3, 4, 5)),
        "half": jnp.ones((4, 4), jnp.bfloat16),
        "empty": {},
        "nothing": jnp.ones((0, 4)),
    }
    settings = dataclasses.replace(SMALL, grafting=grafting)
    updates, state = apply_shampoo(settings, [tree] * 3)
    for update in updates:
        assert jax.tree.structure(update) == jax.tree.structure(tree)
        for actual, expected in zip(jax.tree.leaves(update), jax.tree.leaves(tree), strict=True):
            assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(update))
    assert int(state.failures) == 0

    assert scale_by_shampoo(settings).init({}).buckets == {}
    apply_shampoo(settings, [{}])


def test_without_blocks_the_update_is_the_grafting_update(
    apply_shampoo, random_gradients, assert_close
):
    gradients = random_gradients((5,), 3)
    updates, _ = apply_shampoo(dataclasses.replace(SMALL, grafting="adam"), gradients)

    adam = optax.scale_by_adam(0.9, 0.9, eps=1e-8)
    adam_state = adam.init(jnp.zeros(5))
    adam_updates = []
    for gradient in gradients:
        update, adam_state = adam.update(gradient, adam_state)
        adam_updates.append(update)
    assert_close(updates, adam_updates, rtol=1e-5)


def test_a_gradient_that_is_not_finite_leaves_a_vector_where_it_is(apply_shampoo):
    gradients = [{"v": jnp.array([1.0, jnp.nan])}, {"v": jnp.ones(2)}]
    updates, state = apply_shampoo(SMALL, gradients)
    assert float(jnp.abs(updates[0]["v"]).max()) == 0 and int(state.failures) == 1
    assert bool(jnp.all(jnp.isfinite(updates[1]["v"]))) and bool(jnp.all(updates[1]["v"] != 0))
