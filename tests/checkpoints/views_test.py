"""What is written of arrays stays as it was, however training goes on."""

import jax
import jax.numpy as jnp

from matta_jax import checkpoints


def test_the_next_step_overwrites_in_place_what_is_still_written(tmp_path):
    # Were arrays written from where they lie, the runtime would copy them within this step.
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = step({"w": jnp.ones((512, 512)), "v": jnp.ones((8, 512))})
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]
    with checkpoints.Checkpoints(tmp_path / "c") as saved:
        # One array in its own shape, and one that is stored in another.
        units = {"params": {"v": (4, 0)}}
        saved.save(1, {"params": tree}, {"config": {}}, loss=1.0, units=units)
        tree = jax.block_until_ready(step(tree))
        assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)] == places

    abstract = checkpoints.on_one_device(jax.eval_shape(lambda: tree))
    with checkpoints.Checkpoints(tmp_path / "c", read_only=True) as saved:
        restored = saved.restore(1, {"params": abstract})["params"]
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(restored))
