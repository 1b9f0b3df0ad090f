"""How devices share the blocks of a bucket."""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.config import ShampooConfig
from matta_jax.optim._blocks import Bucket
from matta_jax.optim._state import BlockState
from matta_jax.optim._step import BlockStep, step_blocks


def block_sharding(num_blocks: int, mesh: Mesh) -> NamedSharding:
    """Splits blocks over as many mesh axes as their number divides over, in the mesh's order."""
    return NamedSharding(mesh, P(_block_axes(num_blocks, mesh)))


def replicate(leaf: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Places an array whole on each device of the mesh."""
    if mesh is None or mesh.size == 1:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P()))


def distributed_step(
    settings: ShampooConfig, bucket: Bucket, mesh: Mesh | None
) -> Callable[[jax.Array, BlockState, jax.Array], BlockStep]:
    """Returns the step of a bucket, each device doing its share: whole gradients in, whole updates
    out.
    """
    axes = () if mesh is None else _block_axes(bucket.size, mesh)

    def on_one_device(gradient_KMN: jax.Array, state: BlockState, count: jax.Array) -> BlockStep:
        return step_blocks(settings, gradient_KMN, state, count, first=0)

    # A bucket that no axis divides is stepped whole by each device.
    if mesh is None or not axes:
        return on_one_device
    share = bucket.size // math.prod(mesh.shape[axis] for axis in axes)

    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, axes, tiled=True)

    def on_each_device(gradient_KMN: jax.Array, state: BlockState, count: jax.Array) -> BlockStep:
        # Gradients are whole on each device: cutting a share of them moves nothing.
        first = jax.lax.axis_index(axes) * share
        share_KMN = jax.lax.dynamic_slice_in_dim(gradient_KMN, first, share)
        update_KMN, squares_K2, state = step_blocks(settings, share_KMN, state, count, first=first)

        update_KMN = gather(update_KMN)
        if squares_K2 is not None:
            squares_K2 = gather(squares_K2)
        return update_KMN, squares_K2, state

    return jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(P(), P(axes), P()),
        out_specs=(P(), P(), P(axes)),
        # It cannot see that what was gathered is equal on all devices.
        check_vma=False,
    )


def _block_axes(num_blocks: int, mesh: Mesh) -> tuple[str, ...]:
    # An axis that does not divide the blocks is passed over, and a later one may still.
    axes: tuple[str, ...] = ()
    parts = 1
    for axis, size in mesh.shape.items():
        if size > 1 and num_blocks % (parts * size) == 0:
            axes = (*axes, axis)
            parts *= size
    return axes
