"""What Optax asks of every transform: its common tests of contributed optimisers, on ours."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from matta_jax.config import ShampooConfig
from matta_jax.optim import scale_by_shampoo

PARAMS = {"w": jnp.full((6, 4), 0.5), "b": jnp.full(4, -0.5)}
TINY_BLOCKS = ShampooConfig(block_size=4, precondition_every=1, start_step=0, block_multiple=1)


def small_shampoo():
    return optax.chain(scale_by_shampoo(TINY_BLOCKS), optax.scale_by_learning_rate(0.05))


def test_map_params_finds_the_trees_of_weights_and_leaves_the_blocks():
    optimizer = optax.chain(scale_by_shampoo(TINY_BLOCKS), optax.trace(0.9))
    state = optimizer.init(PARAMS)
    mapped = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    for leaf, mapped_leaf in zip(
        jax.tree.leaves(state[0]), jax.tree.leaves(mapped[0]), strict=True
    ):
        np.testing.assert_array_equal(leaf, mapped_leaf)
    for leaf in jax.tree.leaves(mapped[1]):
        np.testing.assert_array_equal(leaf, 1)

    others = optax.tree.map_params(
        optimizer, lambda leaf: leaf, state, transform_non_params=lambda _: None
    )
    assert others[0] == (None, None, None, None)


WRAPPERS = {
    "plain": lambda optimizer: optimizer,
    "masked": lambda optimizer: optax.masked(optimizer, {"w": True, "b": False}),
    "partition": lambda optimizer: optax.partition(
        {"matrix": optimizer, "other": optax.sgd(0.05)}, {"w": "matrix", "b": "other"}
    ),
    "MultiSteps": lambda optimizer: optax.MultiSteps(optimizer, 2).gradient_transformation(),
    "apply_if_finite": lambda optimizer: optax.apply_if_finite(optimizer, 3),
    "schedule_free": lambda optimizer: optax.contrib.schedule_free(optimizer, 0.05),
    "mechanize": optax.contrib.mechanize,
    "inject_hyperparams": lambda _: optax.inject_hyperparams(
        lambda rate: optax.chain(scale_by_shampoo(TINY_BLOCKS), optax.scale_by_learning_rate(rate))
    )(rate=0.05),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_wrappers_of_optax_take_it(name):
    optimizer = WRAPPERS[name](small_shampoo())
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state)
    for leaf, first in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        assert leaf.shape == first.shape and leaf.dtype == first.dtype
        assert np.isfinite(leaf).all()
    assert name == "mechanize" or not np.array_equal(params["w"], PARAMS["w"])


@pytest.mark.parametrize(
    "params",
    [
        (PARAMS["w"], PARAMS["b"]),
        collections.namedtuple("Weights", "w b")(**PARAMS),
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS),
        {},
    ],
    ids=["tuple", "named tuple", "bf16", "none"],
)
def test_weights_may_be_of_any_tree_and_type(params):
    optimizer = small_shampoo()
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert update.dtype == leaf.dtype and np.isfinite(np.float32(update)).all()


def quadratic(params):
    """Of a badly scaled matrix and a vector, with its minimum where both are 1."""
    scales = jnp.array([1.0, 3.0, 0.3, 1.0])
    return jnp.sum((scales * (params["w"] - 1)) ** 2) + jnp.sum((params["b"] - 1) ** 2)


def minimise(optimizer, num_steps):
    """Returns weights and state after steps down the quadratic."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (PARAMS, optimizer.init(PARAMS))
    return jax.jit(lambda: jax.lax.scan(step, start, length=num_steps)[0])()


@pytest.mark.parametrize("grafting", ["rmsprop", "adam", "sgd"])
@pytest.mark.parametrize("root", ["newton", "eigh"])
def test_it_finds_the_minimum_of_a_quadratic(root, grafting):
    settings = dataclasses.replace(TINY_BLOCKS, root=root, grafting=grafting)
    optimizer = optax.chain(
        scale_by_shampoo(settings),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.05, 200)),
    )
    params, _ = minimise(optimizer, 200)
    # Grafted on SGD they end between 0.007 and 0.011, by the machine.
    assert quadratic(PARAMS) > 20 and quadratic(params) < 2e-2


def test_steps_are_the_same_eagerly_and_again():
    optimizer = small_shampoo()
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        params = optax.apply_updates(params, updates)

    compiled, again = minimise(optimizer, 3), minimise(optimizer, 3)
    jax.tree.map(np.testing.assert_array_equal, compiled, again)
    for leaf, eager in zip(
        jax.tree.leaves(compiled), jax.tree.leaves((params, state)), strict=True
    ):
        np.testing.assert_allclose(leaf, eager, rtol=1e-4, atol=1e-5)


def test_empty_weights_of_a_class_of_the_users_are_no_placeholder():
    """`optax.tree.map_params` asks by an empty class of its own, and gets a state without trees."""

    @jax.tree_util.register_static
    class Empty:
        pass

    assert scale_by_shampoo(TINY_BLOCKS).init(Empty()).buckets == {}
