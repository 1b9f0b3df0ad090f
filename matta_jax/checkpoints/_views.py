"""What is stored of arrays: an axis that is cut into pieces of several entries is stored as two."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.checkpoints._pieces import Units, stored_shape
from matta_jax.nesting import Tree, path_name

# How the arrays of a tree are cut, by path; and those of several trees, by name.
TreeUnits = Mapping[str, Units]
UnitsByTree = Mapping[str, TreeUnits]


def stored_view(
    trees: Mapping[str, Tree], units: UnitsByTree, *, is_copied: bool = False
) -> dict[str, Tree]:
    """The trees in the shapes that are stored.

    Args:
      trees: by name.
      units: how their arrays are cut, by name and path.
      is_copied: a step may overwrite the trees while the view is written. Orbax fetches what lies
        on chips, but writes a CPU's arrays from where they are: the runtime would copy each that
        the step overwrites, one after another. Here all cores copy.
    """

    def stored(leaf: Any, unit: Units) -> Any:
        if _is_split(unit):
            # A new array.
            return leaf.reshape(stored_shape(leaf.shape, unit))
        return _copy(leaf) if is_copied and _is_of_cpu(leaf) else leaf

    return {name: _map_units(stored, tree, units.get(name, {})) for name, tree in trees.items()}


def abstract_view(tree: Tree, units: TreeUnits) -> Tree:
    """What is stored of a tree of abstract arrays; a split axis is sharded by its inner part, where
    this divides, or not at all.
    """

    def stored(leaf: jax.ShapeDtypeStruct, unit: Units) -> jax.ShapeDtypeStruct:
        if not _is_split(unit):
            return leaf
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, P(*_stored_spec(sharding, unit)))
        return jax.ShapeDtypeStruct(stored_shape(leaf.shape, unit), leaf.dtype, sharding=sharding)

    return _map_units(stored, tree, units)


def merged(stored: jax.Array, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """A stored array in its own shape again."""
    if stored.shape == abstract.shape:
        return stored
    # Within a program, so that no device ever holds more than its shard.
    reshape = jax.jit(lambda x: x.reshape(abstract.shape), out_shardings=abstract.sharding)
    return reshape(stored)


_copy = jax.jit(jnp.copy)


def _is_of_cpu(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and next(iter(leaf.devices())).platform == "cpu"


def _is_split(unit: Units) -> bool:
    return any(size > 1 for size in unit)


def _map_units(function: Callable[[Any, Units], Any], tree: Tree, units: TreeUnits) -> Tree:
    """Maps each array and how it is cut."""

    def visit(key_path: Any, leaf: Any) -> Any:
        return function(leaf, tuple(units.get(path_name(key_path), ())))

    return jax.tree_util.tree_map_with_path(visit, tree)


def _stored_spec(sharding: NamedSharding, units: Units) -> list[Any]:
    """The mesh axes of each stored axis."""
    # A spec may end before the array's axes do; those are not sharded.
    unnamed = [None] * (len(units) - len(sharding.spec))
    stored_spec: list[Any] = []
    for mesh_axes, unit in zip([*sharding.spec, *unnamed], units, strict=True):
        if unit <= 1:
            stored_spec.append(mesh_axes)
            continue
        inner = mesh_axes if unit % _num_shards(sharding, mesh_axes) == 0 else None
        stored_spec += [None, inner]
    return stored_spec


def _num_shards(sharding: NamedSharding, mesh_axes: str | tuple[str, ...] | None) -> int:
    if mesh_axes is None:
        return 1
    names = mesh_axes if isinstance(mesh_axes, tuple) else (mesh_axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)
