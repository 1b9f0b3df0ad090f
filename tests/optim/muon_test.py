import functools
import itertools

import jax
import numpy as np
import pytest

from matta_jax import nesting, optim
from matta_jax.config import OptimizerConfig

MUON = OptimizerConfig(name="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.01)


def stepped(optimizer, params, gradients):
    """The update of the last of these gradients, compiled."""

    @jax.jit
    def step(gradient, state):
        return optimizer.update(gradient, state, params)

    state = optimizer.init(params)
    for gradient in gradients:
        update, state = step(gradient, state)
    return update


def test_the_students_update_is_its_slice_of_the_tas(nested_model):
    """Layers, d_model, heads and d_ff differ; norms and tables are updated entry by entry."""
    axes, nest, narrow = nested_model.axes, nested_model.nest, nested_model.narrow
    student_axes = nesting.slice_axes(axes, nest.student)
    make = functools.partial(optim.make_optimizer, MUON, num_steps=10, nest=nest)
    gradients = [nested_model.gradients(seed) for seed in range(3)]

    expected = narrow(stepped(make(axes=axes), nested_model.params, gradients))
    student_params = narrow(nested_model.params)
    actual = stepped(make(axes=student_axes), student_params, [narrow(g) for g in gradients])
    for path, leaf in nesting.flatten(actual).items():
        # Of entries of about 0.02; the iteration makes rounding hundreds of times as large.
        np.testing.assert_allclose(
            leaf, nesting.flatten(expected)[path], rtol=0, atol=1e-3, err_msg=path
        )


@pytest.mark.parametrize("nested", [True, False])
def test_blocks_are_orthogonal_with_a_constant_root_mean_square(nested_model, nested):
    """By singular values: five steps of Newton-Schulz leave most of them between 0.6 and 1.3 of the
    nearest orthogonal matrix's.
    """
    nest = nested_model.nest if nested else None
    matrices = {"mlp": {"w_in": nested_model.gradients(0)["blocks"]["0"]["mlp"]["w_in"]}}
    axes = {"mlp": {"w_in": nested_model.axes["blocks"]["0"]["mlp"]["w_in"]}}
    rule = optim.orthogonalise_blocks(axes, nest)
    update, _ = jax.jit(rule.update)(matrices, rule.init(matrices))

    # Of each layer [d_model, d_ff], whose granules are 16 wide.
    w_in = np.asarray(update["mlp"]["w_in"]).transpose(0, 2, 1, 3).reshape(3, 24, 32)
    rows, columns = ((0, 16, 24), (0, 16, 32)) if nested else ((0, 24), (0, 32))
    for first, second in itertools.product(itertools.pairwise(rows), itertools.pairwise(columns)):
        for layer in w_in:
            block = layer[slice(*first), slice(*second)]
            assert 0.13 < np.sqrt(np.mean(block**2)) < 0.25
            singular = np.linalg.svd(block, compute_uv=False) / (0.2 * np.sqrt(max(block.shape)))
            assert np.quantile(singular, 0.2) > 0.6 and singular.max() < 1.3
