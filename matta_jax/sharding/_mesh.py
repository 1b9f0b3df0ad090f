"""The mesh of a run, and where its arrays lie on it. Auto axis types throughout (architecture.md, decision 12)."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from matta_jax.config import MeshConfig
from matta_jax.distill import Layout
from matta_jax.errors import UserError
from matta_jax.nesting import Names, Tree

RULES: dict[str, str] = {"d_model": "fsdp", "heads": "tensor", "d_ff": "tensor"}
"""Logical axis to mesh axis; all others are kept whole. Granules are never sharded, only what lies inside them."""

_BATCH_AXES = ("data", "fsdp")


def check_mesh(config: MeshConfig, *, batch_size: int, microbatches: int, num_devices: int) -> tuple[int, int, int]:
    """Returns the (data, fsdp, tensor) sizes of a mesh over `num_devices`.

    Raises:
      UserError: the mesh needs more devices than there are, or the batch does not divide over it.
    """
    inner = config.fsdp * config.tensor
    data = max(num_devices // inner, 1) if config.data == -1 else config.data
    if data * inner > num_devices:
        raise UserError(
            f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor={config.tensor} need {data * inner} "
            f"devices, but there are {num_devices}; lower them so that their product is at most {num_devices}"
        )
    parts = data * config.fsdp * microbatches
    if batch_size % parts:
        raise UserError(
            f"data.batch_size={batch_size} must be a multiple of {parts} "
            f"(mesh.data={data} x mesh.fsdp={config.fsdp} x train.microbatches={microbatches}); "
            f"use {-(-batch_size // parts) * parts}"
        )
    return data, config.fsdp, config.tensor


def make_mesh(sizes: tuple[int, int, int]) -> Mesh:
    """Makes the (data, fsdp, tensor) mesh over the first devices."""
    count = int(np.prod(sizes))
    return jax.make_mesh(
        sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over the data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(_BATCH_AXES))


def _spec(names: Names, mesh: Mesh, *, without: str | None = None) -> PartitionSpec:
    axes = [RULES.get(name) for name in names]
    return PartitionSpec(*(axis if axis != without and axis and mesh.shape[axis] > 1 else None for axis in axes))


def param_shardings(shapes: Tree, axes: Tree, mesh: Mesh) -> Tree:
    """Returns the sharding of each weight.

    Raises:
      UserError: an axis that does not divide over its mesh axis.
    """

    def sharding(weight: Any, names: Names) -> NamedSharding:
        spec = _spec(names, mesh)
        for name, size, axis in zip(names, weight.shape, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                what = f"{name} granule" if f"{name}_granules" in names else name
                raise UserError(
                    f"mesh.{axis}={mesh.shape[axis]} must divide the {what} of {size} over which it is sharded"
                )
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, shapes, axes)


def gather_for_compute(mesh: Mesh):
    """Returns `gather(weights, axes)`: brings the fsdp shards together and leaves the tensor shards (decision 2)."""

    def gather(weights: Tree, axes: Tree) -> Tree:
        if mesh.size == 1:
            return weights
        return jax.tree.map(
            lambda weight, names: jax.lax.with_sharding_constraint(
                weight, NamedSharding(mesh, _spec(names, mesh, without="fsdp"))
            ),
            weights,
            axes,
        )

    return gather


def loss_layout(mesh: Mesh) -> Layout | None:
    """Returns how the loss lies on the mesh: tokens as batches, the table as its weight, the vocabulary over tensor."""
    if mesh.size == 1:
        return None
    tokens = tuple(axis for axis in _BATCH_AXES if mesh.shape[axis] > 1)
    columns, vocab = (axis if mesh.shape[axis] > 1 else None for axis in (RULES["d_model"], "tensor"))
    return Layout(mesh, tokens=tokens, columns=columns, vocab=vocab)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places this process's rows of a batch on its devices, as parts of one global batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
