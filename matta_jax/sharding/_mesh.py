"""The mesh of a run, and where its arrays lie on it. Auto axis types throughout (architecture.md,
decision 12).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.nesting import Names, Tree
from matta_jax.sharding._placement import Layout, Placement

RULES: dict[str, str] = {"d_model": "fsdp", "heads": "tensor", "d_ff": "tensor", "vocab": "tensor"}
"""Logical axis to mesh axis; all others are kept whole. Granules are never sharded, only what lies
inside them.
"""

AXES = ("data", "fsdp", "tensor")
_BATCH_AXES = ("data", "fsdp")
_FIELDS = {
    "heads": "model.num_heads, nest.num_heads",
    "d_ff": "nest.widths",
    "vocab": "model.vocab_size",
}


def check_mesh(
    config: MeshConfig, *, batch_size: int, microbatches: int, num_devices: int
) -> tuple[int, int, int]:
    """Returns the (data, fsdp, tensor) sizes of a mesh over `num_devices`; an axis of -1 takes what
    the others leave.

    Raises:
      UserError: the axes need more devices than there are, leave an odd number to the axis of -1,
        or do not divide the batch.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    free = next((name for name in AXES if sizes[name] == -1), None)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > num_devices or (free and num_devices % fixed):
        raise UserError(_misfit(sizes, num_devices, exact=free is not None))
    if free:
        sizes[free] = num_devices // fixed
    parts = sizes["data"] * sizes["fsdp"] * microbatches
    if batch_size % parts:
        nearest = max(round(batch_size / parts), 1) * parts
        raise UserError(
            f"data.batch_size={batch_size} must be a multiple of {parts} "
            f"(mesh.data={sizes['data']} x mesh.fsdp={sizes['fsdp']} x "
            f"train.microbatches={microbatches}); "
            f"use {nearest}"
        )
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def _misfit(sizes: Mapping[str, int], num_devices: int, *, exact: bool) -> str:
    """The line about axes that do not fit the devices, with the nearest size of one
    axis that does.
    """
    stated = {name: size for name, size in sizes.items() if size != -1}
    need = math.prod(stated.values())
    shown = " x ".join(f"mesh.{name}={size}" for name, size in stated.items() if size > 1)
    rule = f"{need} devices, which must divide the {num_devices} that there are"
    if not exact:
        rule = f"{need} devices, but there are {num_devices}"
    for name, size in stated.items():  # The first axis that can mend it alone.
        others = need // size
        fits = [
            n
            for n in range(1, size)
            if n * others <= num_devices and not (exact and num_devices % (n * others))
        ]
        if fits:
            return f"{shown} needs {rule}; nearest that fits: mesh.{name}={max(fits)}"
    return f"{shown} needs {rule}; lower two of them"


def make_mesh(sizes: tuple[int, int, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the (data, fsdp, tensor) mesh: over the first devices, or with several processes over
    all of them.

    Raises:
      UserError: several processes, and a mesh that leaves some of their devices idle.
    """
    count = math.prod(sizes)
    if devices is None and jax.process_count() > 1 and count != jax.device_count():
        raise UserError(
            f"mesh.data={sizes[0]} x mesh.fsdp={sizes[1]} x mesh.tensor={sizes[2]} is {count} "
            "devices, but the "
            f"{jax.process_count()} processes have {jax.device_count()}, and all must take part; "
            "use mesh.data=-1"
        )
    devices = (jax.devices() if devices is None else devices)[:count]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over the data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(_BATCH_AXES))


def _spec(names: Names, mesh: Mesh, *, without: str | None = None) -> PartitionSpec:
    axes = [RULES.get(name) for name in names]
    return PartitionSpec(
        *(axis if axis != without and axis and mesh.shape[axis] > 1 else None for axis in axes)
    )


def param_shardings(shapes: Tree, axes: Tree, mesh: Mesh, *, uneven_whole: bool = False) -> Tree:
    """Returns the sharding of each weight.

    Args:
      shapes: the weights.
      axes: their axis names.
      mesh: the devices.
      uneven_whole: whether an axis that does not divide over its mesh axis is kept whole.

    Raises:
      UserError: an axis that does not divide over its mesh axis.
    """

    def sharding(weight: Any, names: Names) -> NamedSharding:
        spec = _spec(names, mesh)
        for i, (name, size, axis) in enumerate(zip(names, weight.shape, spec, strict=True)):
            if axis is not None and size % mesh.shape[axis]:
                if uneven_whole:
                    spec = PartitionSpec(*spec[:i], None, *spec[i + 1 :])
                    continue
                raise UserError(
                    _uneven(name, size, axis, mesh.shape[axis], granule=f"{name}_granules" in names)
                )
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, shapes, axes)


def _uneven(name: str, size: int, axis: str, parts: int, *, granule: bool) -> str:
    """The line about a weight's axis that cannot be cut into `parts`."""
    field = _FIELDS.get(name, f"model.{name}, nest.{name}")
    divisor = max(n for n in range(1, parts) if size % n == 0)
    multiple = -(-size // parts) * parts
    mend = f"use mesh.{axis}={divisor}, or {name} of {multiple}"
    what = f"the {name} of {size} ({field})"
    if granule:
        what = f"the common granule of {size} of {name} ({field})"
        mend = f"use mesh.{axis}={divisor}, or sizes that are all multiples of {multiple}"
    return f"mesh.{axis}={parts} must divide {what}, over which it is sharded; {mend}"


def placement(mesh: Mesh) -> Placement:
    """Returns where weights lie: whole over fsdp while they are used, tensor shards stay (decision
    2).
    """
    joins = mesh.shape["tensor"] == 1 and mesh.devices.flat[0].platform != "tpu"
    if mesh.size == 1:
        return Placement(joins=joins)
    place = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    whole = lambda x, names: place(x, _spec(names, mesh, without="fsdp"))

    def scatter(gradient: jax.Array, names: Names) -> jax.Array:
        # A matrix's comes together first: so compilers add up the sub-models' gradients before
        # these cross devices. A table's is cheaper at once, as the few rows of a batch go where
        # their columns are kept; but where data are split over two axes, the partitioner would make
        # every device hold all rows.
        at_once = "vocab" in names and mesh.shape["data"] == 1
        gradient = gradient if at_once else whole(gradient, names)
        return place(gradient, _spec(names, mesh))

    return Placement(gather=whole, scatter=scatter, joins=joins)


def loss_layout(mesh: Mesh) -> Layout | None:
    """Returns how the loss lies on the mesh: tokens as batches, the table as its weight."""
    if mesh.size == 1:
        return None
    tokens = tuple(axis for axis in _BATCH_AXES if mesh.shape[axis] > 1)
    columns, vocab = (
        RULES[name] if mesh.shape[RULES[name]] > 1 else None for name in ("d_model", "vocab")
    )
    return Layout(mesh, tokens=tokens, columns=columns, vocab=vocab)


@functools.lru_cache(maxsize=16)  # Asked for every batch.
def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch, rising, that the devices of this process hold."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(
        np.concatenate([np.arange(batch_size)[index] for index in places if index is not None])
    )


def place_batch(
    rows: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """Places this process's rows on its devices, as parts of one global batch.

    Args:
      rows: those of `own_rows`.
      mesh: the devices.
      batch_size: of the global batch. None: `rows` is the whole batch.
    """
    sharding = batch_sharding(mesh)

    def place(array: np.ndarray) -> jax.Array:
        size = batch_size or len(array)
        own = own_rows(mesh, size)

        def shard(index: Any) -> np.ndarray:
            return array[np.searchsorted(own, np.arange(size)[index[0]])]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, shard)

    return {name: place(array) for name, array in rows.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Places a tree that every process holds whole; each puts its own shards on its devices."""

    def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)
