import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.config import ShampooConfig
from matta_jax.optim import scale_by_shampoo


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_the_state_of_a_small_model_has_the_size_that_is_promised():
    """2.88 M parameters: an embedding, and layers of 12 d² weights at d = 128 with a
    d_ff of 512.
    """
    tree = {
        "embed": shape(10000, 128),
        "qkv": shape(8, 3, 128, 128),
        "out": shape(8, 128, 128),
        "w_in": shape(8, 128, 512),
        "w_out": shape(8, 512, 128),
    }
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == 2_852_864

    state = jax.eval_shape(scale_by_shampoo(ShampooConfig(block_size=128)).init, tree)
    size = 0
    for blocks in state.buckets.values():
        for leaf in jax.tree.leaves((blocks.statistics, blocks.roots)):
            size += leaf.size * leaf.dtype.itemsize
    assert size <= 46 * 2**20


def test_checkpoints_of_older_versions_find_every_field_where_they_left_it():
    """Orbax restores a state by these names and keys."""
    params = {"w": shape(24, 8), "long": shape(40, 8), "b": shape(5)}
    settings = ShampooConfig(
        block_size=8, max_dim=32, beyond_max_dim="one_sided", grafting="adam", block_multiple=1
    )
    state = jax.eval_shape(scale_by_shampoo(settings).init, params)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    blocks = ["moments/mu", "moments/nu", "age", "failures", "residual"]
    one_side = ["statistics/R", "roots/R", *blocks]
    two_sides = ["statistics/L", "statistics/R", "roots/L", "roots/R", *blocks]
    assert names == [
        "count",
        *[f"buckets/40x8_R/{name}" for name in one_side],
        *[f"buckets/8x8/{name}" for name in two_sides],
        "rest/mu/b",
        "rest/nu/b",
        "failures",
    ]
