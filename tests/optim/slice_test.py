import dataclasses

import jax
import numpy as np
import pytest

from matta_jax import nesting, optim
from matta_jax.config import ShampooConfig

SETTINGS = ShampooConfig(
    block_size=8, precondition_every=1, start_step=0, max_dim=32, grafting="adam"
)


# With 7, parts of six, and the last of each axis padded.
@pytest.mark.slow
@pytest.mark.parametrize("block_size", [8, pytest.param(7, marks=pytest.mark.slow)])
def test_the_students_state_is_a_selection_of_the_tas_blocks_and_goes_on_alone(
    block_size, nested_model
):
    """Layers, d_model, heads and d_ff are all sliced; the Student's next update is its slice of the
    TA's.
    """
    settings = dataclasses.replace(SETTINGS, block_size=block_size)
    narrow, gradients, nest = nested_model.narrow, nested_model.gradients, nested_model.nest
    views = optim.matrix_views(nested_model.axes, nest)
    student_axes = nesting.slice_axes(nested_model.axes, nest.student)
    student_views = optim.matrix_views(student_axes, nest)

    ta = optim.scale_by_shampoo(settings, views=views)
    ta_step = jax.jit(ta.update)
    ta_state = ta.init(nested_model.params)
    for seed in range(3):
        _, ta_state = ta_step(gradients(seed), ta_state)
    sliced_state = optim.slice_shampoo(
        ta_state,
        settings=settings,
        params=nested_model.params,
        views=views,
        sub_views=student_views,
        narrow=narrow,
    )

    # A Student that has been alone from the start.
    student = optim.scale_by_shampoo(settings, views=student_views)
    student_step = jax.jit(student.update)
    lone_state = student.init(narrow(nested_model.params))
    assert jax.tree.structure(sliced_state) == jax.tree.structure(lone_state)
    for a, b in zip(jax.tree.leaves(sliced_state), jax.tree.leaves(lone_state), strict=True):
        assert a.shape == b.shape
    for seed in range(3):
        _, lone_state = student_step(narrow(gradients(seed)), lone_state)

    ta_update, _ = ta_step(gradients(9), ta_state)
    update, _ = student_step(narrow(gradients(9)), sliced_state)
    lone_update, _ = student_step(narrow(gradients(9)), lone_state)
    for expected in (narrow(ta_update), lone_update):
        for a, b in zip(jax.tree.leaves(update), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_sub_model_that_cuts_through_a_block_is_refused(nested_model):
    # Without the nest's boundaries.
    views = optim.matrix_views(nested_model.axes)
    state = optim.scale_by_shampoo(SETTINGS, views=views).init(nested_model.params)

    def narrow_oddly(tree):
        return jax.tree.map(lambda x: x[..., :5] if x.ndim > 2 else x, tree)

    with pytest.raises(ValueError, match="cuts through"):
        optim.slice_shampoo(
            state,
            settings=SETTINGS,
            params=nested_model.params,
            views=views,
            sub_views=views,
            narrow=narrow_oddly,
        )


@pytest.mark.parametrize("beyond", ["graft", "one_sided"])
def test_a_side_beyond_max_dim_in_the_ta_alone_is_refused(beyond, nested_model):
    views = optim.matrix_views(nested_model.axes, nested_model.nest)
    student_axes = nesting.slice_axes(nested_model.axes, nested_model.nest.student)
    # Between the Student's d_model and the TA's.
    settings = dataclasses.replace(SETTINGS, max_dim=20, beyond_max_dim=beyond)

    with pytest.raises(ValueError, match="a side of .. in the TA, beyond shampoo.max_dim=20"):
        optim.slice_shampoo(
            optim.scale_by_shampoo(settings, views=views).init(nested_model.params),
            settings=settings,
            params=nested_model.params,
            views=views,
            sub_views=optim.matrix_views(student_axes, nested_model.nest),
            narrow=nested_model.narrow,
        )
