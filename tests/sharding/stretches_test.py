"""Devices that share the positions of a window: each has its own, and all of them in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from matta_jax.sharding import Stretches, make_mesh


@pytest.mark.parametrize("count", [2, 4])
def test_each_position_is_of_one_device_and_joins_the_others_in_order(count):
    stretches = Stretches("context", count)

    def positions(_):
        at_T = stretches.positions(24)
        joined = stretches.join(jnp.stack([at_T, -at_T]), -1)
        return at_T, joined[None]

    at_T, joined = jax.jit(
        jax.shard_map(
            positions,
            mesh=make_mesh((1, 1, 1, count)),
            in_specs=P(),
            out_specs=(P("context"), P("context")),
            check_vma=False,
        )
    )(jnp.zeros(()))
    by_device = np.asarray(at_T).reshape(count, -1)
    assert sorted(by_device.ravel()) == list(range(24))
    # As much to attend to for each: as many positions at or before its own.
    seen = by_device.sum(axis=1)
    assert (seen == seen[0]).all() and (np.diff(by_device) > 0).all()
    for of_device in np.asarray(joined):
        np.testing.assert_array_equal(of_device, [np.arange(24), -np.arange(24)])
