"""Each device with its own rows of a batch, or its own part of them: what crosses devices is
written out.

Left to itself, the partitioner sums the gradient of each sub-model over devices before it adds them
up: a branch of a `lax.switch` cannot hand on what is summed in part alone. Within `Rows.run` a
device computes with its rows; the gradients of all sub-models are added up there, and cross once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from matta_jax.nesting import BLOCKS, Names, Tree, map_names, table_view
from matta_jax.sharding._mesh import (
    BATCH_AXES,
    CONTEXT_AXIS,
    batch_axes,
    mesh_axis,
    weight_spec,
)
from matta_jax.sharding._placement import (
    Engine,
    Layout,
    Placement,
    free_axes,
    joins_granules,
    sum_dtype,
)
from matta_jax.sharding._stretches import Stretches

# What `Rows.run` takes from the partitioner.
_MANUAL_AXES = (*BATCH_AXES, CONTEXT_AXIS)
# Of a TPU: an array's last two axes lie in tiles, of 16 by 128 numbers in bfloat16.
_LANES = 128
_TILE = 16 * _LANES
# By how much of itself an array may be filled up to whole tiles.
_MOST_FILLED = 0.25


@dataclasses.dataclass(frozen=True)
class Rows:
    """How devices share the rows of a batch, each with all the weights that it computes with.

    Attributes:
      mesh: the devices.
      engine: what attends on them; None: blocks of queries.
      dtype: of weights while they are used.
      reduce_dtype: type in which gradients of matrices and tables are summed over devices:
        `compute` for `dtype`, or float32.
      once: whether weights come together once in a step, and not again for each layer and
        microbatch: less crosses, but every device holds all of them and their gradient.
      late: whether shards of a gradient that several devices hold are summed by `finish`, after
        all microbatches, and not in each of them.
    """

    mesh: Mesh
    engine: Engine | None
    dtype: str
    reduce_dtype: str
    once: bool
    late: bool = False

    @property
    def placement(self) -> Placement:
        """Where weights lie in a pass over what `together` returns."""
        engine = self.engine
        if engine is not None:
            # Its rows are the device's already.
            inner_mesh = self._inner_mesh if self._has_tensor_axis else None
            engine = dataclasses.replace(engine, mesh=inner_mesh, batch_axes=())
        placement = Placement(
            joins=joins_granules(self.mesh),
            engine=engine,
            stretches=self.stretches,
            takes_turns=not self._has_tensor_axis,
        )
        if self.once:
            return placement
        return dataclasses.replace(
            placement, gather=self._gather, scatter=self._scatter, layers_alone=True
        )

    @property
    def stretches(self) -> Stretches | None:
        """How devices share the positions of a window; None: each has all of them."""
        count = self.mesh.shape[CONTEXT_AXIS]
        return Stretches(CONTEXT_AXIS, count) if count > 1 else None

    @property
    def layout(self) -> Layout | None:
        """How the operands of the loss lie."""
        if not self._has_tensor_axis:
            return None
        vocab = mesh_axis("vocab")
        return Layout(self._inner_mesh, tokens=(), vocab=vocab)

    def run(
        self, function: Callable[..., Any], axes: Tree, *, has_gradient: bool = True
    ) -> Callable[..., Any]:
        """Returns `(params, batch, *arguments) -> (numbers, gradient)` that runs `function` on each
        device, with its shards of the weights and its rows of the batch.

        Args:
          function: what it returns is summed over devices already, the gradient in shards.
          axes: names of the weights' axes.
          has_gradient: whether it returns one; else numbers alone.
        """
        specs: Any = map_names(self._spec, axes)
        rows_spec: Any = PartitionSpec(batch_axes(self.mesh))
        replicated: Any = PartitionSpec()
        # Over a tensor axis the partitioner goes on with what a device has within its rows.
        manual_axes = _MANUAL_AXES if self._has_tensor_axis else self.mesh.axis_names

        def run(params: Tree, batch: Tree, *arguments: Any) -> Any:
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(specs, rows_spec, *(replicated for _ in arguments)),
                out_specs=(replicated, specs) if has_gradient else replicated,
                axis_names=set(manual_axes),
                check_vma=False,
            )(params, batch, *arguments)

        return run

    def together(self, params: Tree, axes: Tree) -> Tree:
        """The weights that come together before a pass, of their shards: those beside the layers,
        or all; the others as they are.
        """
        return self._moved(self._together, params, axes)

    def apart(self, gradient: Tree, axes: Tree) -> Tree:
        """The gradient of what `together` returns, summed over devices: shards, in float32. Where
        sums are late, over those alone that hold other shards.
        """
        return self._moved(self._apart, gradient, axes)

    def finish(self, gradient: Tree, axes: Tree) -> Tree:
        """The sums that `late` has left, of shards that are added up over microbatches."""
        if not self.late:
            return gradient

        def finished(shard: jax.Array, names: Names) -> jax.Array:
            return self._by_tensor_shards(self._summed, shard, names)

        return jax.tree.map(finished, gradient, axes)

    def held_bytes(self, shapes: Tree, axes: Tree, *, is_accumulated: bool) -> int:
        """The bytes on a device of all weights come together, and of their gradient, which is in
        float32 where microbatches are added up.
        """

        def held(weight: Any, names: Names) -> int:
            spec = weight_spec(names, self.mesh, without="fsdp")
            numbers = math.prod(NamedSharding(self.mesh, spec).shard_shape(weight.shape))
            size = np.dtype(self.sum_dtype(names)).itemsize
            return numbers * (size + (4 if is_accumulated else size))

        return sum(jax.tree.leaves(jax.tree.map(held, shapes, axes)))

    def sum(self, tree: Any) -> Any:
        """Numbers of each device, added up."""
        return jax.lax.psum(tree, self._sum_axes)

    def _moved(self, move: Callable[..., jax.Array], tree: Tree, axes: Tree) -> Tree:
        result = {}
        for name, part in tree.items():
            is_moved = self.once or name != BLOCKS
            result[name] = jax.tree.map(move, part, axes[name]) if is_moved else part
        return result

    def _together(self, weight: jax.Array, names: Names) -> jax.Array:
        # In this order: what travels between devices is of the narrower type.
        gathered = self._gather(weight.astype(self.dtype), names)
        return gathered.astype(self.sum_dtype(names))

    def _apart(self, gradient: jax.Array, names: Names) -> jax.Array:
        # A table's too: in float32 only tokens and sub-models are added up, on each device.
        gradient = gradient.astype(sum_dtype(names, self.dtype, self.reduce_dtype))
        return self._scatter(gradient, names).astype(jnp.float32)

    def sum_dtype(self, names: Names) -> str:
        """The type in which a pass has a weight that came together before it, and its gradient."""
        # A loss adds to a table in float32.
        if table_view(names) is not None:
            return "float32"
        return sum_dtype(names, self.dtype, self.reduce_dtype)

    def _gather(self, weight: jax.Array, names: Names) -> jax.Array:
        return self._by_tensor_shards(self._whole_of, weight, names)

    def _scatter(self, gradient: jax.Array, names: Names) -> jax.Array:
        return self._by_tensor_shards(self._sum_and_cut, gradient, names)

    def _by_tensor_shards(
        self, move: Callable[..., jax.Array], array: jax.Array, names: Names
    ) -> jax.Array:
        """Moves each part of a tensor axis by itself: the partitioner would bring them together."""
        if not self._has_tensor_axis:
            return move(array, names)
        spec: Any = weight_spec(names, self.mesh, without="fsdp")
        return jax.shard_map(
            functools.partial(move, names=names),
            mesh=self._inner_mesh,
            in_specs=spec,
            out_specs=spec,
            axis_names=free_axes(self._inner_mesh),
            check_vma=False,
        )(array)

    def _whole_of(self, weight: jax.Array, names: Names) -> jax.Array:
        for i, axis in enumerate(self._spec(names)):
            if axis is not None:
                weight = jax.lax.all_gather(weight, axis, axis=i, tiled=True)
        return weight

    def _sum_and_cut(self, gradient: jax.Array, names: Names) -> jax.Array:
        for i, axis in enumerate(self._spec(names)):
            if axis is not None:
                gradient = _reduce_scatter(gradient, axis, i)
        return gradient if self.late else self._summed(gradient, names)

    def _summed(self, shard: jax.Array, names: Names) -> jax.Array:
        """The sum over the devices that hold the same shard."""
        sum_axes = set(self._sum_axes) - set(self._spec(names))
        return jax.lax.psum(shard, tuple(sorted(sum_axes)))

    def _spec(self, names: Names) -> PartitionSpec:
        """Over which of the axes that split rows each axis of a weight is sharded."""
        spec = weight_spec(names, self.mesh)
        return PartitionSpec(*(axis if axis in BATCH_AXES else None for axis in spec))

    @property
    def _sum_axes(self) -> tuple[str, ...]:
        """The axes whose devices have other tokens."""
        axes = batch_axes(self.mesh)
        return axes if self.stretches is None else (*axes, CONTEXT_AXIS)

    @property
    def _has_tensor_axis(self) -> bool:
        return self.mesh.shape["tensor"] > 1

    @property
    def _inner_mesh(self) -> AbstractMesh:
        """The mesh as it is within `run`."""
        manual = dict.fromkeys(_MANUAL_AXES, AxisType.Manual)
        return self.mesh.abstract_mesh.update_axis_types(manual)


def _reduce_scatter(x: jax.Array, mesh_axis: str, position: int) -> jax.Array:
    """Sums over a mesh axis, and cuts an axis of the array.

    The compiler for TPUs sums all on every device, at twice the bytes, unless the parts are a first
    axis by themselves, and each of them is made of whole tiles: the last axis is filled up to them,
    where little is added.
    """
    num_parts = jax.lax.axis_size(mesh_axis)
    first = jnp.moveaxis(x, position, 0)
    size = first.shape[-1]
    filled = size + _missing(first.shape, num_parts)
    if filled > size:
        first = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, filled - size)])
    parts = first.reshape(num_parts, -1)
    if parts.shape[1] % _TILE == 0:
        parts = parts.reshape(num_parts, -1, _LANES)
    part = jax.lax.psum_scatter(parts, mesh_axis).reshape(-1, *first.shape[1:])
    return jnp.moveaxis(part[..., :size], 0, position)


def _missing(shape: tuple[int, ...], num_parts: int) -> int:
    """By how much the last axis of an array that is cut along its first one must grow for parts of
    whole tiles; 0 where it would grow by much.
    """
    *cut, size = shape
    rows = math.prod(cut) // num_parts
    if len(shape) == 1 or not rows:
        return 0
    missing = -size % (_TILE // math.gcd(_TILE, rows))
    return missing if missing <= _MOST_FILLED * size else 0
