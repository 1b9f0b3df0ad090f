"""Fingerprints: of any change, and on any sharding."""

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax import checkpoints

TREE = {
    "a": {"w": jnp.arange(24, dtype=jnp.float32).reshape(4, 6)},
    "n": jnp.int32(3),
    "h": jnp.ones(5, jnp.bfloat16),
}


def test_any_flipped_bit_changes_the_fingerprint():
    whole = checkpoints.fingerprints(TREE)
    bits = np.asarray(TREE["a"]["w"]).view(np.uint32)
    for position in (0, 7, 23):
        for bit in (0, 13, 31):
            flipped = bits.copy()
            flipped.flat[position] ^= np.uint32(1 << bit)
            other = checkpoints.fingerprints({"a": {"w": jnp.asarray(flipped.view(np.float32))}})
            assert other["a/w"] != whole["a/w"]
    swapped = checkpoints.fingerprints({"a": {"w": TREE["a"]["w"][::-1]}})
    assert swapped["a/w"] != whole["a/w"]
    assert set(whole) == {"a/w", "n", "h"} and len({*whole.values()}) == 3


def test_a_fingerprint_is_what_older_checkpoints_hold():
    whole = {"a/w": "8ec8bcee7d4b4056", "n": "e7c2db9102d3a43b", "h": "a6994ebff03d58cf"}
    assert checkpoints.fingerprints(TREE) == whole
    assert checkpoints.fingerprints(jax.tree.map(np.asarray, TREE)) == whole
    assert (
        checkpoints.fingerprints(TREE, {"a/w": (2, 3)})["a/w"]
        == "ada53881e37eee6b8f6e86934aca3e028b5eec2d6989cffc4d3d22d39e5bbdef"
    )


def test_the_fingerprint_is_the_same_on_any_sharding():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    sharded = {"a": {"w": jax.device_put(TREE["a"]["w"], sharding)}}
    assert checkpoints.fingerprints(sharded)["a/w"] == checkpoints.fingerprints(TREE)["a/w"]
