import jax.numpy as jnp
import pytest

from matta_jax.config import ShampooConfig
from matta_jax.optim import MatrixView, blocking_of


@pytest.mark.slow
def test_blocks_of_a_bucket_are_cut_and_joined_without_loss():
    # A stack of transposed matrices, and a matrix.
    stack = jnp.arange(234, dtype=jnp.float32).reshape(2, 9, 13) + 1
    matrix = jnp.arange(91, dtype=jnp.float32).reshape(13, 7) + 1
    leaves = [stack, matrix]
    views = [MatrixView((2,), (1,), (4,), (5,)), MatrixView((0,), (1,), (4, 12), (3,))]

    blocking = blocking_of(ShampooConfig(block_size=3), leaves, views)
    blocks = {name: blocking.cut(name, leaves) for name in blocking.buckets}
    joined = blocking.join(blocks)
    for i, leaf in enumerate(leaves):
        assert bool(jnp.all(joined[i] == leaf))

    for name, bucket in blocking.buckets.items():
        assert blocks[name].shape == (bucket.size, *bucket.shape) and bucket.size % 8 == 0
        assert max(bucket.shape) <= 3
    # No number stands in two blocks, and no block crosses a boundary.
    numbers = jnp.concatenate([x.reshape(-1) for x in blocks.values()])
    assert int((numbers > 0).sum()) == 234 + 91
