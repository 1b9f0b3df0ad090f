"""Slicing, derived from logical axes and a SubModel and from nothing else.

A tree of weights goes with a tree of the same structure whose leaves are the weights' axis names.
The layers of a TA are one stack, `blocks/0`; those of an extracted model are one stack for each run
of layers of equal sizes, `blocks/0`, `blocks/1` and so on.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.nesting._axes import (
    GRANULES,
    LAYERS,
    MEMBERS,
    SCAFFOLD,
    Names,
    axis_of,
    fan_in,
    is_granulated,
    logical_names,
)
from matta_jax.nesting._nest import Nest
from matta_jax.nesting._sub_model import SubModel
from matta_jax.nesting._trees import flatten

Tree = Any
ArrayT = TypeVar("ArrayT")

BLOCKS = "blocks"


@dataclasses.dataclass(frozen=True)
class Pick:
    """One entry of an axis, which is dropped: what is left has no such axis."""

    entry: int


Size = int | tuple[int, ...] | Pick
"""Of an axis a prefix, the indices to keep, or one entry."""


def narrow_array(array: ArrayT, names: Names, sizes: Mapping[str, Size]) -> ArrayT:
    """Keeps of each named axis the first `sizes[name]` entries, the entries of that tuple of
    indices, or one entry without the axis.

    Args:
      array: anything with `shape` that slices as numpy arrays do.
      names: the name of each axis. A granulated axis is cut by its logical name: `sizes["d_ff"]`
        counts neurons.
      sizes: logical axis to size. Axes without an entry are kept as they are.

    Raises:
      ValueError: a size larger than the axis, or not a whole number of granules.
    """
    index = narrow_index(array.shape, names, sizes)  # type: ignore[attr-defined]
    part = array[index]  # type: ignore[index]
    dropped = _picked_positions(names, sizes)
    return part.squeeze(dropped) if dropped else part


def _picked_positions(names: Names, sizes: Mapping[str, Size]) -> tuple[int, ...]:
    """The positions of the axes of which one entry is picked."""
    positions = []
    for position, name in enumerate(names):
        if isinstance(sizes.get(name), Pick):
            positions.append(position)
    return tuple(positions)


def narrow_names(names: Names, sizes: Mapping[str, Size]) -> Names:
    """The axis names of `narrow_array`'s result."""
    dropped = _picked_positions(names, sizes)
    return tuple(name for i, name in enumerate(names) if i not in dropped)


def place_array(part: Any, target: Any, names: Names, sizes: Mapping[str, Size]) -> Any:
    """Undoes `narrow_array`: returns `target` with a part at its place. A numpy array is changed
    itself, one of JAX's is copied.
    """
    index = narrow_index(target.shape, names, sizes)
    dropped = _picked_positions(names, sizes)
    # The index keeps a picked axis, as an axis of one entry.
    if isinstance(target, jax.Array):
        return target.at[index].set(jnp.expand_dims(part, dropped))
    target[index] = np.expand_dims(part, dropped)
    return target


def narrow_index(
    shape: tuple[int, ...],
    names: Names,
    sizes: Mapping[str, Size],
) -> tuple[Any, ...]:
    """The index by which `narrow_array` slices: for each axis a slice, or an array of entries."""
    index: list[Any] = []
    for position, name in enumerate(names):
        logical = name.removesuffix(GRANULES)
        size = sizes.get(logical)
        # Whole granules are cut off, on their own axis; the inside of a granule stays whole.
        is_inside = logical == name and is_granulated(name, names)
        if size is None or is_inside:
            index.append(slice(None))
        elif isinstance(size, int):
            # A position on the axis of granules stands for `inner` entries of the logical axis.
            inner = shape[names.index(logical)] if logical != name else 1
            index.append(_prefix(logical, size, inner, shape[position]))
        elif isinstance(size, Pick):
            # As a slice of one entry: beside an array of entries (the layers of a run), numpy would
            # count a bare number as an array too, and might move the axes.
            index.append(_entries(logical, (size.entry,), shape[position]))
        else:
            index.append(_entries(logical, size, shape[position]))
    return tuple(index)


def _prefix(
    axis: str,
    size: int,
    inner: int,
    length: int,
) -> slice:
    is_whole = size % inner == 0
    if not is_whole or size // inner > length:
        raise ValueError(f"{axis}={size} must be a multiple of {inner}, at most {length * inner}")
    return slice(0, size // inner)


def _entries(axis: str, entries: tuple[int, ...], length: int) -> Any:
    if any(not 0 <= entry < length for entry in entries):
        raise ValueError(f"{axis}={entries} is outside the axis of {length}")

    first = entries[0]
    stop = first + len(entries)
    # Views instead of copies where the entries are consecutive.
    if entries == tuple(range(first, stop)):
        return slice(first, stop)
    return np.array(entries)


def merge_granules(weight: ArrayT, names: Names) -> ArrayT:
    """Joins each granulated axis with its granules: an array with one axis for each of
    `logical_names`.
    """
    order: list[int] = []
    shape: list[int] = []
    lengths = weight.shape  # type: ignore[attr-defined]
    for name in logical_names(names):
        # Names have granules before the inside, so that a prefix of granules becomes a prefix of
        # the joined axis.
        pair = (name + GRANULES, name)
        positions = [i for i, axis in enumerate(names) if axis in pair]
        order += positions
        shape.append(math.prod(lengths[i] for i in positions))
    return weight.transpose(order).reshape(shape)  # type: ignore[attr-defined]


def split_granules(weight: ArrayT, names: Names, granules: Mapping[str, int]) -> ArrayT:
    """Undoes `merge_granules`, with granules of the given sizes."""
    order: list[str] = []
    shape: list[int] = []
    sizes = weight.shape  # type: ignore[attr-defined]
    for name, size in zip(logical_names(names), sizes, strict=True):
        if is_granulated(name, names):
            order += [name + GRANULES, name]
            shape += [size // granules[name], granules[name]]
        else:
            order.append(name)
            shape.append(size)
    # A weight may have its granules far from their inside: first of all, before its inputs.
    transposed = [order.index(name) for name in names]
    return weight.reshape(shape).transpose(transposed)  # type: ignore[attr-defined]


def join_granules(tree: Tree, axes: Tree) -> Tree:
    """Makes one granule of all granules of each axis: matrices of it then lie in one piece."""

    def join(weight: ArrayT, names: Names) -> ArrayT:
        merged = merge_granules(weight, names)
        lengths = merged.shape  # type: ignore[attr-defined]
        # The axis of granules stays, with one entry: names and einsums fit the weight as before.
        granules = dict(zip(logical_names(names), lengths, strict=True))
        return split_granules(merged, names, granules)

    return jax.tree.map(join, tree, axes)


def regranulate(tree: Tree, axes: Tree, granules: Mapping[str, int]) -> Tree:
    """Cuts granulated axes, whatever granules they have, into those of the given sizes."""

    def cut(weight: ArrayT, names: Names) -> ArrayT:
        merged = merge_granules(weight, names)
        return split_granules(merged, names, granules)

    return jax.tree.map(cut, tree, axes)


def narrow(tree: Tree, axes: Tree, sizes: Mapping[str, Size]) -> Tree:
    """`narrow_array` over a tree of weights and the tree of their axis names."""

    def cut(array: ArrayT, names: Names) -> ArrayT:
        return narrow_array(array, names, sizes)

    return jax.tree.map(cut, tree, axes)


def map_names(function: Any, axes: Tree) -> Tree:
    """Maps a function of names over a tree of them."""
    # Names are tuples, which jax would take for nodes of the tree.
    return jax.tree.map(function, axes, is_leaf=lambda node: type(node) is tuple)


def narrow_axes(axes: Tree, sizes: Mapping[str, Size]) -> Tree:
    """`narrow_names` over a tree of axis names."""
    return map_names(lambda names: narrow_names(names, sizes), axes)


def layer_axes(axes: Tree) -> Tree:
    """The axis names of one layer of a stack."""
    # `layers` stands first in every stack, which is what a scan runs over.
    return map_names(lambda names: names[1:], axes)


def stack_of(tree: Tree) -> Tree:
    """The one stack of all layers of a TA's weights, or of their axis names."""
    return tree[BLOCKS]["0"]


def outside_blocks(tree: Tree) -> Tree:
    """What stands beside the layers, by module."""
    return {name: part for name, part in tree.items() if name != BLOCKS}


def sizes_of(sub_model: SubModel, sizes: Mapping[str, int] | None = None) -> dict[str, Size]:
    """What a sub-model keeps of each logical axis, outside its layers.

    Args:
      sub_model: the model.
      sizes: those of one of its layers; None: what all of them have alike.
    """
    if sizes is None:
        sizes = sub_model.sizes
    result: dict[str, Size] = {SCAFFOLD: 0, **sizes}
    if sub_model.member is not None:
        result[MEMBERS] = Pick(sub_model.member)
    return result


def training_sizes(sub_model: SubModel) -> dict[str, Size]:
    """As `sizes_of`, with what stands beside the model while it is trained."""
    return sizes_of(sub_model) | {SCAFFOLD: Pick(0)}


def run_sizes(sub_model: SubModel, index: int) -> dict[str, Size]:
    """What a sub-model keeps of the TA's stack for its run of that index."""
    run = sub_model.runs[index]
    return sizes_of(sub_model, run.sizes) | {LAYERS: run.layers}


def narrow_modules(modules: Tree, axes: Tree, sizes: Mapping[str, Size]) -> Tree:
    """`narrow` of modules beside the layers, by name, without those of which nothing is kept."""
    names = _with_entries({name: axes[name] for name in modules}, sizes)
    return {name: narrow(modules[name], names[name], sizes) for name in names}


def _with_entries(axes: Tree, sizes: Mapping[str, Size]) -> Tree:
    """The axis names of those modules that have entries."""
    empty = {axis for axis, size in sizes.items() if size == 0}

    def has_entries(names: Tree) -> bool:
        return all(empty.isdisjoint(weight_names) for weight_names in flatten(names).values())

    return {name: names for name, names in axes.items() if has_entries(names)}


def slice_model(params: Tree, axes: Tree, sub_model: SubModel) -> Tree:
    """Slices the weights of a TA into those of the plain model of `sub_model`.

    Args:
      params: weights of a TA, all its layers in one stack.
      axes: their axis names.
      sub_model: what to keep.

    Returns:
      The plain model's weights, one stack for each run of layers of equal sizes.
    """
    sliced = narrow_modules(outside_blocks(params), axes, sizes_of(sub_model))

    # Layers of different sizes cannot stand in one array.
    stack = stack_of(params)
    names = stack_of(axes)
    sliced[BLOCKS] = {}
    for i in range(len(sub_model.runs)):
        sizes = run_sizes(sub_model, i)
        sliced[BLOCKS][str(i)] = narrow(stack, names, sizes)
    return sliced


def slice_axes(axes: Tree, sub_model: SubModel) -> Tree:
    """The axis names of `slice_model`'s result."""
    sizes = sizes_of(sub_model)
    plain = narrow_axes(_with_entries(axes, sizes), sizes)
    # Runs differ in sizes alone: each has the names of the one stack.
    names = stack_of(plain)
    num_runs = len(sub_model.runs)
    plain[BLOCKS] = {str(i): names for i in range(num_runs)}
    return plain


def parent_path(path: str) -> tuple[str, int | None]:
    """The TA's path of an extracted model's weight, and the index of its run of layers; None for a
    weight outside the layers.
    """
    parts = path.split("/")
    if parts[0] != BLOCKS:
        return path, None
    _, run, *inner = parts
    # All layers of a TA are in its stack 0.
    path_in_ta = "/".join([BLOCKS, "0", *inner])
    return path_in_ta, int(run)


def units(names: Names, nest: Nest) -> tuple[int, ...]:
    """The steps in which sub-models may cut each axis of a weight; 0 for one that stays as it is.

    Layers, members and granules are cut to single ones.
    """

    def unit(name: str) -> int:
        if name.endswith(GRANULES) or axis_of(name).is_picked:
            return 1
        # Its granules are cut instead.
        if is_granulated(name, names):
            return 0
        sizes = nest.boundaries(name)
        return math.gcd(*sizes) if len(sizes) > 1 else 0

    return tuple(unit(name) for name in names)


def fan_in_scales(shape: tuple[int, ...], names: Names, nest: Nest) -> jax.Array | None:
    """Factors that give each part of a matrix the scale of the smallest model that it belongs to.

    A matrix initialised with variance 1/N for its whole fan-in N is multiplied, on each nested
    input axis, by sqrt(N/n) over the entries that first appear in the model of fan-in n. The
    Student's slice then has exactly the Student's own scale, and the TA's output variance stays
    below twice its own.

    Returns:
      An array that broadcasts to `shape`, or None where nothing is to scale.
    """
    factor = None
    for position in fan_in(names):
        name = names[position]
        logical = name.removesuffix(GRANULES)
        boundaries = nest.boundaries(logical)
        # Sizes are whole granules, so one factor fits a granule: its inside is not scaled again.
        is_inside = logical == name and is_granulated(name, names)
        if len(boundaries) < 2 or is_inside:
            continue

        # The first logical entry at each position of this axis.
        inner = shape[names.index(logical)] if logical != name else 1
        entries = jnp.arange(shape[position]) * inner

        # From the right: entry i is the (i + 1)-th, which a model of just i entries lacks.
        sizes = jnp.asarray(boundaries)
        smallest_model = sizes[jnp.searchsorted(sizes, entries, side="right")]
        scale = jnp.sqrt(boundaries[-1] / smallest_model)

        broadcast_shape = [1] * len(shape)
        broadcast_shape[position] = -1
        scale = scale.reshape(broadcast_shape)
        factor = scale if factor is None else factor * scale
    return factor
