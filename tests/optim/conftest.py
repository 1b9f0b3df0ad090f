"""What the tests of the optimisers share: gradients, a transform's run, a nested model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig
from matta_jax.optim import scale_by_shampoo


def _apply(settings, gradients, *, views=None, mesh=None, state=None):
    transform = scale_by_shampoo(settings, views=views, mesh=mesh)
    if state is None:
        state = transform.init(gradients[0])
    step = jax.jit(transform.update)

    updates = []
    for gradient in gradients:
        update, state = step(gradient, state)
        updates.append(update)
    return updates, state


def _random_gradients(shape, steps, seed=0):
    rng = np.random.default_rng(seed)
    # An anisotropic gradient with a mean: what preconditioning is for.
    scale = np.geomspace(1, 30, shape[-1])
    return [jnp.asarray((rng.normal(size=shape) + 0.3) * scale, jnp.float32) for _ in range(steps)]


def _assert_close(actual, expected, rtol):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        difference = np.abs(np.float64(a) - np.float64(b)).max()
        assert difference <= rtol * np.abs(np.float64(b)).max()


@pytest.fixture(scope="session")
def apply_shampoo():
    """`apply_shampoo(settings, gradients)` applies the transform to a list of gradients; returns
    all updates and the last state.
    """
    return _apply


@pytest.fixture(scope="session")
def random_gradients():
    """`random_gradients(shape, steps)`: a list of them."""
    return _random_gradients


@pytest.fixture(scope="session")
def assert_close():
    """`assert_close(actual, expected, rtol)`, relative to the largest entry of each leaf."""
    return _assert_close


@dataclasses.dataclass(frozen=True)
class NestedModel:
    """A TA and its Student, which differ in layers, d_model, heads and d_ff."""

    nest: nesting.Nest
    axes: nesting.Tree
    params: nesting.Tree

    def narrow(self, tree):
        """Slices a tree like the TA's weights to the Student's."""
        return nesting.slice_model(tree, self.axes, self.nest.student)

    def gradients(self, seed):
        """Random ones of the TA."""
        leaves, treedef = jax.tree.flatten(self.params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        values = [
            jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, values)


@pytest.fixture(scope="session")
def nested_model():
    """A `NestedModel` of a language model."""
    nest = nesting.expand(
        num_layers=2,
        d_model=16,
        num_heads=2,
        d_ff=16,
        ta_num_layers=3,
        ta_d_model=24,
        ta_num_heads=3,
        ta_d_ff=32,
    )
    architecture = models.architecture_of(ModelConfig(vocab_size=40, max_len=8), nest, nest.ta)
    params = jax.jit(lambda: models.init_params(architecture, jax.random.key(0), nest))()
    return NestedModel(nest, models.logical_axes(architecture), params)
