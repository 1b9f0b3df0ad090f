"""What all layers of a pass share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.models.layers import Context


@pytest.mark.parametrize(
    ("start", "expected"),
    [(None, [0, 1, 2]), (4, [4, 5, 6]), ((4, 0), [[4, 5, 6], [0, 1, 2]])],
)
def test_positions_follow_what_is_cached(start, expected):
    start = None if start is None else jnp.asarray(start)
    np.testing.assert_array_equal(Context(3, start=start).positions, expected)


def test_a_traced_context_keeps_its_length_static():
    traces = []

    @jax.jit
    def positions(context):
        traces.append(context.seq_len)
        return context.positions

    for start in (1, 5):
        new_positions = positions(Context(2, start=jnp.int32(start)))
        np.testing.assert_array_equal(new_positions, [start, start + 1])
    assert traces == [2]
