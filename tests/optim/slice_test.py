import dataclasses

import jax
import numpy as np
import pytest

from matta_jax import models, nesting, optim
from matta_jax.config import ModelConfig, ShampooConfig
from matta_jax.optim import Shampoo, inspect

NEST = nesting.expand(
    num_layers=2,
    d_model=16,
    num_heads=2,
    d_ff=16,
    ta_num_layers=3,
    ta_d_model=24,
    ta_num_heads=3,
    ta_d_ff=32,
)
ARCHITECTURE = models.architecture_of(ModelConfig(vocab_size=40, max_len=8), NEST, NEST.ta)
AXES = models.logical_axes(ARCHITECTURE)
PARAMS = jax.jit(lambda: models.init_params(ARCHITECTURE, jax.random.key(0), NEST))()
SETTINGS = Shampoo(block_size=8, precondition_every=1, start_step=0, max_dim=32, grafting="adam")


def narrow(tree):
    return nesting.slice_model(tree, AXES, NEST.student)


def step_fn(axes, settings=SETTINGS):
    transform = optim.scale_by_shampoo(settings, views=optim.matrix_views(axes, NEST))
    return transform, jax.jit(transform.update)


def gradients(seed):
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(PARAMS)))
    leaves = [
        jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, jax.tree.leaves(PARAMS), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(PARAMS), leaves)


@pytest.mark.parametrize(
    "block_size", [8, pytest.param(7, marks=pytest.mark.slow)]
)  # With 7, parts of six, and the last of each axis padded.
def test_the_students_state_is_a_selection_of_the_tas_blocks_and_goes_on_alone(block_size):
    """Layers, d_model, heads and d_ff are all sliced; the Student's next update is its slice of the
    TA's.
    """
    settings = dataclasses.replace(SETTINGS, block_size=block_size)
    ta, ta_step = step_fn(AXES, settings)
    state = ta.init(PARAMS)
    for seed in range(3):
        _, state = ta_step(gradients(seed), state)
    sub_axes = nesting.slice_axes(AXES, NEST.student)
    own = optim.slice_shampoo(
        state,
        settings=settings,
        params=PARAMS,
        views=optim.matrix_views(AXES, NEST),
        sub_views=optim.matrix_views(sub_axes, NEST),
        narrow=narrow,
    )
    student, student_step = step_fn(sub_axes, settings)
    alone = student.init(narrow(PARAMS))
    assert jax.tree.structure(own) == jax.tree.structure(alone)
    jax.tree.map(lambda a, b: a.shape == b.shape or pytest.fail("shape"), own, alone)
    for seed in range(3):
        _, alone = student_step(narrow(gradients(seed)), alone)
    whole, _ = ta_step(gradients(9), state)
    update, _ = student_step(narrow(gradients(9)), own)
    expected, _ = student_step(narrow(gradients(9)), alone)
    for a, b, c in zip(
        *(jax.tree.leaves(x) for x in (update, narrow(whole), expected)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-5)


def test_a_sub_model_that_cuts_through_a_block_is_refused():
    views = optim.matrix_views(AXES)  # Without the nest's boundaries.
    state = optim.scale_by_shampoo(SETTINGS, views=views).init(PARAMS)
    odd = lambda tree: jax.tree.map(lambda x: x[..., :5] if x.ndim > 2 else x, tree)
    with pytest.raises(ValueError, match="cuts through"):
        optim.slice_shampoo(
            state, settings=SETTINGS, params=PARAMS, views=views, sub_views=views, narrow=odd
        )


def test_the_config_means_the_settings():
    config = ShampooConfig(block_size=64, staggered=True, beyond_max_dim="one_sided")
    assert optim.shampoo_settings(config) == Shampoo(
        block_size=64, staggered=True, beyond_max_dim="one_sided"
    )
    assert optim.shampoo_settings(ShampooConfig()) == Shampoo()


def test_blocks_end_at_the_nests_boundaries():
    views = optim.matrix_views(AXES, NEST)
    assert views["embed"]["tokens"].column_cuts == (16, 24) and not jax.tree.leaves(views["norm"])
    blocking = SETTINGS.blocking(PARAMS, views)
    assert all(
        max(bucket.shape) <= 8 and bucket.size % 8 == 0 for bucket in blocking.buckets.values()
    )
    # The table of 40 tokens is beyond max_dim; that of positions is not.
    assert [view is None for view in (blocking.views[-3], blocking.views[-4])].count(True) >= 1


def test_the_blocks_of_a_layer_are_told_apart():
    ta, ta_step = step_fn(AXES)
    state = ta.init(PARAMS)
    for seed in range(3):
        _, state = ta_step(gradients(seed), state)
    look = lambda weight, layer: inspect.blocks_of(
        state,
        settings=SETTINGS,
        params=PARAMS,
        views=optim.matrix_views(AXES, NEST),
        narrow=narrow,
        weight=weight,
        layer=layer,
    )
    # d_model 24 in blocks of 8, of which the Student has two; d_ff granules of 16 in two, of which
    # it has the first.
    blocks = look("blocks/0/mlp/w_in", 0)
    assert [block.in_student for block in blocks] == [True] * 4 + [False] * 8
    assert not any(
        block.in_student for block in look("blocks/0/mlp/w_in", 2)
    )  # A layer that the Student lacks.
    block = blocks[0]
    assert block.failures == 0 and block.age == 0 and block.residual < 1e-3
    values = block.spectrum("L")
    assert values[0] == 1 and np.all(np.diff(values) <= 0) and 1 <= block.effective_rank("L") <= 8
    assert 1 < block.condition("L", 1e-3) <= 1001
    with pytest.raises(KeyError):
        look("norm/scale", 0)


def test_widths_that_make_odd_blocks_are_pointed_out():
    nest = lambda *widths: nesting.Nest(
        nesting.SubModel(16, 2, (0, 1), (min(widths),) * 2),
        nesting.SubModel(16, 2, (0, 1), (max(widths),) * 2),
        8,
        widths,
    )
    assert optim.shampoo_advice(ShampooConfig(block_size=128), nest(128, 256, 512)) is None
    assert optim.shampoo_advice(ShampooConfig(block_size=128), nest(100)) is None
    line = optim.shampoo_advice(ShampooConfig(block_size=128), nest(96, 160))
    assert "shampoo.block_size=128" in line and "32" in line and "(96, 160)" in line
