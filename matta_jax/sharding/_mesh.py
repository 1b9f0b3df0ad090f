"""The mesh of a run, and where its arrays lie on it. Auto axis types throughout.

What an axis of a weight is sharded over stands in the table of axes. Granules are never sharded,
only what lies inside them.
"""

import functools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.nesting import (
    RESIDUAL,
    Names,
    Role,
    Tree,
    axis_of,
    is_granulated,
    mesh_axis,
    table_view,
)
from matta_jax.sharding._placement import Engine, Layout, Placement, joins_granules

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")
# The axis over which the positions of a window are split.
CONTEXT_AXIS = "context"

Sizes = tuple[int, ...]
"""Of the axes of a mesh: data, fsdp, tensor, context; last ones that are left out are 1."""


def check_mesh(
    config: MeshConfig, *, batch_size: int, microbatches: int, num_devices: int
) -> Sizes:
    """Returns the `mesh_sizes` of a run.

    Raises:
      UserError: as `mesh_sizes`, or the axes do not divide the batch.
    """
    sizes = mesh_sizes(config, num_devices)
    data, fsdp = sizes[:2]
    parts = data * fsdp * microbatches
    if batch_size % parts:
        nearest = max(round(batch_size / parts), 1) * parts
        raise UserError(
            f"data.batch_size={batch_size} must be a multiple of {parts} "
            f"(mesh.data={data} x mesh.fsdp={fsdp} x train.microbatches={microbatches}); "
            f"use {nearest}"
        )
    return sizes


def mesh_sizes(config: MeshConfig, num_devices: int) -> Sizes:
    """Returns the sizes of a mesh over `num_devices`; an axis of -1 takes what the others leave.

    Raises:
      UserError: the axes need more devices than there are, leave an odd number to the axis of -1,
        or do not lie within the slices.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    free_axis = next((name for name in AXES if sizes[name] == -1), None)
    fixed = math.prod(size for size in sizes.values() if size != -1)

    leaves_odd_number = free_axis is not None and num_devices % fixed != 0
    if fixed > num_devices or leaves_odd_number:
        raise UserError(_misfit(sizes, num_devices, exact=free_axis is not None))
    if free_axis is not None:
        sizes[free_axis] = num_devices // fixed
    if sizes["data"] % config.slices:
        raise UserError(_split_slices(sizes, config.slices, num_devices))
    return tuple(sizes[name] for name in AXES)


def mesh_text(sizes: Sizes) -> str:
    """The sizes of a mesh for people; that of an axis of which most runs have one is left out."""
    shown = zip(AXES, sizes, strict=False)
    return " ".join(f"{name}={n}" for name, n in shown if n > 1 or name != CONTEXT_AXIS)


def _split_slices(sizes: Mapping[str, int], slices: int, num_devices: int) -> str:
    """The line about data that are not split evenly across slices."""
    if num_devices % slices:
        fitting = math.gcd(num_devices, slices)
        return f"mesh.slices={slices} must divide the {num_devices} devices; use {fitting}"
    inner = {name: size for name, size in sizes.items() if name != "data"}
    within, row_devices = num_devices // slices, math.prod(inner.values())
    mend = f"use mesh.data={num_devices // row_devices}"
    if within % row_devices:
        product = " x ".join(f"mesh.{name}" for name in inner)
        mend = f"{product} must divide the {within} devices of a slice"
    return (
        f"mesh.data={sizes['data']} must be a multiple of mesh.slices={slices}: data are split "
        f"across slices, and the other axes lie within one; {mend}"
    )


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

    def fits(count: int) -> bool:
        is_exact = not exact or num_devices % count == 0
        return count <= num_devices and is_exact

    # The first axis that can mend it, the others as they are.
    for name, size in stated.items():
        remaining = need // size
        fitting_sizes = [n for n in range(1, size) if fits(n * remaining)]
        if fitting_sizes:
            return f"{shown} needs {rule}; nearest that fits: mesh.{name}={max(fitting_sizes)}"
    return f"{shown} needs {rule}; lower two of them"


def make_mesh(sizes: Sizes, devices: Sequence[Any] | None = None, *, slices: int = 1) -> Mesh:
    """Makes a mesh: over the first devices, or with several processes over all of them.

    Args:
      sizes: of the axes.
      devices: to take in place of this run's.
      slices: of the devices; data are split across them first. Where devices do not tell their
        slice, as many in a row are one.

    Raises:
      UserError: several processes, and a mesh that leaves some of their devices idle; or the
        devices are of another number of slices.
    """
    sizes = (*sizes, *[1] * (len(AXES) - len(sizes)))
    count = math.prod(sizes)
    is_shared = devices is None and jax.process_count() > 1
    if is_shared and count != jax.device_count():
        product = " x ".join(f"mesh.{name}={n}" for name, n in zip(AXES, sizes, strict=True))
        raise UserError(
            f"{product} is {count} devices, but the "
            f"{jax.process_count()} processes have {jax.device_count()}, and all must take part; "
            "use mesh.data=-1"
        )
    if devices is None:
        devices = jax.devices()
    devices = devices[:count]
    _check_slices(devices, slices)
    try:
        array = _arranged(sizes, devices, slices)
    # Axes that are no product of the links' axes: what is near may then lie further apart.
    except NotImplementedError:
        array = _arranged(sizes, devices, slices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(sizes: Sizes, devices: Sequence[Any], slices: int, **options: bool) -> np.ndarray:
    """The devices of a mesh, those near each other where most crosses."""
    if slices == 1 or getattr(devices[0], "slice_index", None) is None:
        return mesh_utils.create_device_mesh(sizes, devices, **options)
    within = (sizes[0] // slices, *sizes[1:])
    across = (slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, **options)


def _check_slices(devices: Sequence[Any], slices: int) -> None:
    """Raises UserError where devices tell of another number of slices."""
    # GPUs call the machines of a cluster slices: as one network they may well be one mesh.
    if devices[0].platform != "tpu" and slices == 1:
        return
    # Of a TPU that is one slice, devices may not tell.
    told = len({getattr(device, "slice_index", None) for device in devices})
    is_simulated = devices[0].platform != "tpu" and told == 1
    if told != slices and not is_simulated:
        raise UserError(f"mesh.slices={slices}, but the devices are of {told}; use {told}")


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which rows of a batch are split."""
    return tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over the data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def weight_spec(names: Names, mesh: Mesh, *, without: str | None = None) -> PartitionSpec:
    """The mesh axis of each axis of a weight; None where it is not sharded, or over `without`."""

    def sharded_over(name: str) -> str | None:
        axis = mesh_axis(name)
        if axis is None or axis == without:
            return None
        # An axis over one device is whole.
        return axis if mesh.shape[axis] > 1 else None

    return PartitionSpec(*map(sharded_over, names))


def param_shardings(
    shapes: Tree, axes: Tree, mesh: Mesh, *, uneven_whole: Container[Role] = ()
) -> Tree:
    """Returns the sharding of each weight.

    Args:
      shapes: the weights.
      axes: their axis names.
      mesh: the devices.
      uneven_whole: roles of axes that every device has all of where they do not divide over their
        mesh axis.

    Raises:
      UserError: an axis that does not divide over its mesh axis.
    """

    def sharding(weight: Any, names: Names) -> NamedSharding:
        spec = list(weight_spec(names, mesh))
        for i, axis in enumerate(spec):
            if axis is None:
                continue
            size, parts = weight.shape[i], mesh.shape[axis]
            if size % parts == 0:
                continue
            if axis_of(names[i]).role not in uneven_whole:
                raise UserError(_uneven(names, i, size, axis, parts))
            spec[i] = None
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, shapes, axes)


def _uneven(names: Names, position: int, size: int, axis: str, parts: int) -> str:
    """The line about a weight's axis that cannot be cut into `parts`."""
    name = names[position]
    fields = axis_of(name).config_fields
    divisor = max(n for n in range(1, parts) if size % n == 0)
    multiple = -(-size // parts) * parts

    what = f"the {name} of {size} ({fields})"
    mend = f"use mesh.{axis}={divisor}, or {name} of {multiple}"
    if is_granulated(name, names):
        what = f"the common granule of {size} of {name} ({fields})"
        mend = f"use mesh.{axis}={divisor}, or sizes that are all multiples of {multiple}"
    return f"mesh.{axis}={parts} must divide {what}, over which it is sharded; {mend}"


def placement(mesh: Mesh, engine: Engine | None = None) -> Placement:
    """Returns where weights lie: gathered over fsdp while they are used; tensor shards stay.

    Args:
      mesh: the devices.
      engine: what attends on them.
    """
    joins = joins_granules(mesh)
    if mesh.size == 1:
        return Placement(joins=joins, engine=engine)

    def place(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def gather(x: jax.Array, names: Names) -> jax.Array:
        return place(x, weight_spec(names, mesh, without="fsdp"))

    def scatter(gradient: jax.Array, names: Names) -> jax.Array:
        # A matrix's gradient comes together first: so compilers add up the sub-models' gradients
        # before these cross devices. A sharded table's is cheaper at once, as the few rows of a
        # batch go where their columns are kept; but where data are split over two axes, the
        # partitioner would make every device hold all rows.
        at_once = _is_sharded_table(names) and mesh.shape["data"] == 1
        if not at_once:
            gradient = gather(gradient, names)
        return place(gradient, weight_spec(names, mesh))

    takes_turns = mesh.shape["tensor"] == 1
    return Placement(
        gather=gather, scatter=scatter, joins=joins, engine=engine, takes_turns=takes_turns
    )


def _is_sharded_table(names: Names) -> bool:
    """Whether a weight is a table whose entries may be sharded."""
    table = table_view(names)
    if table is None:
        return False
    entries, _ = table
    return any(mesh_axis(names[i]) is not None for i in entries)


def loss_layout(mesh: Mesh) -> Layout | None:
    """Returns how the loss lies on the mesh: tokens as batches, the table as its weight."""
    if mesh.size == 1:
        return None
    tokens = batch_axes(mesh)
    vocab, columns = weight_spec(("vocab", RESIDUAL), mesh)
    return Layout(mesh, tokens=tokens, columns=columns, vocab=vocab)


@functools.lru_cache(maxsize=16)  # Asked for every batch.
def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch, rising, that the devices of this process hold."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    rows_by_device = [rows[index] for index in indices.values() if index is not None]
    # Devices that share an entry of the batch's axes hold the same rows.
    return np.unique(np.concatenate(rows_by_device))


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
        process_rows = own_rows(mesh, size)

        def shard(index: Any) -> np.ndarray:
            shard_rows = np.arange(size)[index[0]]
            return array[np.searchsorted(process_rows, shard_rows)]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, shard)

    return {name: place(array) for name, array in rows.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Places a tree that every process holds whole; each puts its own shards on its devices."""

    def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)
