"""Models that run and are not trained, on the devices of this process."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from matta_jax.config import MeshConfig
from matta_jax.nesting import Role, Tree
from matta_jax.sharding._mesh import (
    BATCH_AXES,
    batch_sharding,
    make_mesh,
    mesh_sizes,
    param_shardings,
    place,
    replicated,
)

RowsT = TypeVar("RowsT")


def local_mesh(config: MeshConfig | None) -> Mesh | None:
    """Returns the mesh of this process's devices for a model that is not trained; None: it runs on
    the first device.

    Args:
      config: the sizes; None: rows over all devices, or the first one where they are CPUs.

    Raises:
      UserError: the axes need more devices than there are, or leave an odd number to the axis of
        -1.
    """
    devices = jax.local_devices()
    # CPUs are simulated: they share the cores of one.
    if config is None and devices[0].platform == "cpu":
        return None
    config = config or MeshConfig()
    sizes = mesh_sizes(config, len(devices))
    if math.prod(sizes) == 1:
        return None
    return make_mesh(sizes, devices, slices=config.slices)


def fitting_mesh(config: MeshConfig | None, shapes: Tree, axes: Tree) -> Mesh | None:
    """Returns the `local_mesh` of a model, before its weights are read.

    Args:
      config: as of `local_mesh`.
      shapes: the weights.
      axes: their axis names.

    Raises:
      UserError: as `local_mesh`, or where the devices do not fit the model.
    """
    mesh = local_mesh(config)
    if mesh is not None:
        weight_shardings(shapes, axes, mesh)
    return mesh


def weight_shardings(shapes: Tree, axes: Tree, mesh: Mesh) -> Tree:
    """Returns the sharding of each weight of a model that is not trained. Every device has all of a
    table whose rows do not divide: a model's vocabulary is what it is.

    Args:
      shapes: the weights.
      axes: their axis names.
      mesh: the devices.

    Raises:
      UserError: heads or another size that does not divide over its mesh axis.
    """
    return param_shardings(shapes, axes, mesh, uneven_whole=(Role.ENTRIES,))


def row_shards(mesh: Mesh | None) -> int:
    """Over how many devices rows of a batch are split."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place_rows(batch: Mapping[str, Any], mesh: Mesh | None) -> Mapping[str, Any]:
    """Places a batch, split by rows; where they do not divide, every device has all of them. On one
    device a batch is placed by the program that reads it.
    """
    if mesh is None:
        return batch

    def put(array: Any) -> jax.Array:
        rows = np.asarray(array)
        divides = len(rows) % row_shards(mesh) == 0
        return place(rows, batch_sharding(mesh) if divides else replicated(mesh))

    return {name: put(array) for name, array in batch.items()}


def map_rows(
    function: Callable[[Any], RowsT], rows: Any, mesh: Mesh | None, *, at_once: int = 1
) -> RowsT:
    """`jax.lax.map` over rows, in which devices map theirs side by side.

    Args:
      function: of a row of each array.
      rows: arrays of as many rows, which divide over the devices that split them.
      mesh: the devices.
      at_once: rows of a device that are computed together.
    """
    shards = row_shards(mesh)
    if mesh is None or shards == 1:
        return jax.lax.map(function, rows, batch_size=at_once if at_once > 1 else None)
    by_turn = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    # A loop over an axis that is split would bring all rows to all devices.
    def turns(array: jax.Array) -> jax.Array:
        split = array.reshape(shards, -1, *array.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(split, by_turn)

    def joined(array: jax.Array) -> jax.Array:
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    results = jax.lax.map(
        jax.vmap(function),
        jax.tree.map(turns, rows),
        batch_size=at_once if at_once > 1 else None,
    )
    return jax.tree.map(joined, results)
