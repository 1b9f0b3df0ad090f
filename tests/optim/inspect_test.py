import functools

import jax
import numpy as np
import pytest

from matta_jax import optim
from matta_jax.config import ShampooConfig
from matta_jax.optim import inspect

SETTINGS = ShampooConfig(
    block_size=8, precondition_every=1, start_step=0, max_dim=32, grafting="adam"
)


def test_the_blocks_of_a_layer_are_told_apart(nested_model):
    views = optim.matrix_views(nested_model.axes, nested_model.nest)
    transform = optim.scale_by_shampoo(SETTINGS, views=views)
    step = jax.jit(transform.update)
    state = transform.init(nested_model.params)
    for seed in range(3):
        _, state = step(nested_model.gradients(seed), state)

    blocks_of = functools.partial(
        inspect.blocks_of,
        state,
        settings=SETTINGS,
        params=nested_model.params,
        views=views,
        narrow=nested_model.narrow,
    )
    # d_model 24 in blocks of 8, of which the Student has two; d_ff granules of 16 in two, of which
    # it has the first.
    blocks = blocks_of(weight="blocks/0/mlp/w_in", layer=0)
    assert [block.in_student for block in blocks] == [True] * 4 + [False] * 8
    # A layer that the Student lacks.
    last_layer = blocks_of(weight="blocks/0/mlp/w_in", layer=2)
    assert not any(block.in_student for block in last_layer)

    block = blocks[0]
    assert block.failures == 0 and block.age == 0 and block.residual < 1e-3
    values = block.spectrum("L")
    assert values[0] == 1 and np.all(np.diff(values) <= 0) and 1 <= block.effective_rank("L") <= 8
    assert 1 < block.condition("L", 1e-3) <= 1001
    with pytest.raises(KeyError):
        blocks_of(weight="norm/scale", layer=0)
