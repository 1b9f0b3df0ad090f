"""Slicing and counting, derived from logical axes and a SubModel and from nothing else.

A tree of weights goes with a tree of the same structure whose leaves are the weights' axis names. A
nested axis that may be sharded over tensor-parallel devices is stored as two axes, `X_granules` and
`X`: the logical axis X is their product, a prefix of granules is a prefix of X, and only the inner
axis is ever sharded, so that slicing moves nothing between devices.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.nesting._sub_model import Nest, SubModel

Tree = Any
Names = tuple[str, ...]
Size = int | tuple[int, ...]  # A prefix, or the indices to keep.
ArrayT = TypeVar("ArrayT")

_GRANULES = "_granules"
_STACK = "layers"
_TABLES = frozenset({"vocab", "positions", "categories"})


def narrow_array(array: ArrayT, names: Names, sizes: Mapping[str, Size]) -> ArrayT:
    """Keeps of each named axis the first `sizes[name]` entries, or the entries of that tuple of
    indices.

    Args:
      array: anything with `shape` that slices as numpy arrays do.
      names: the name of each axis. A granulated axis is cut by its logical name: `sizes["d_ff"]`
        counts neurons.
      sizes: logical axis to size. Axes without an entry are kept whole.

    Raises:
      ValueError: a size larger than the axis, or not a whole number of granules.
    """
    shape = array.shape  # type: ignore[attr-defined]
    return array[_index(shape, names, sizes)]  # type: ignore[index]


def place_array(
    part: np.ndarray, whole: np.ndarray, names: Names, sizes: Mapping[str, Size]
) -> None:
    """Undoes `narrow_array`: writes a part to its place in the whole, a numpy array, which it
    changes.
    """
    whole[_index(whole.shape, names, sizes)] = part


def _index(shape: tuple[int, ...], names: Names, sizes: Mapping[str, Size]) -> tuple[Any, ...]:
    index: list[Any] = [slice(None)] * len(names)
    for position, name in enumerate(names):
        logical = name.removesuffix(_GRANULES)
        size = sizes.get(logical)
        if size is None or (logical == name and name + _GRANULES in names):
            continue
        inner = shape[names.index(logical)] if logical != name else 1
        if isinstance(size, tuple):
            if any(not 0 <= entry < shape[position] for entry in size):
                raise ValueError(f"{logical}={size} is outside the axis of {shape[position]}")
            if size == tuple(range(size[0], size[0] + len(size))):
                index[position] = slice(size[0], size[0] + len(size))
            else:
                index[position] = np.array(size)
            continue
        if size % inner or size // inner > shape[position]:
            raise ValueError(
                f"{logical}={size} must be a multiple of {inner}, at most {shape[position] * inner}"
            )
        index[position] = slice(0, size // inner)
    return tuple(index)


def logical_names(names: Names) -> Names:
    """The axis names of `merge_granules`'s result."""
    return tuple(name for name in names if not name.endswith(_GRANULES))


def merge_granules(weight: ArrayT, names: Names) -> ArrayT:
    """Joins each granulated axis with its granules: an array with one axis for each of
    `logical_names`.
    """
    order, shape = [], []
    for name in logical_names(names):
        parts = [i for i, axis in enumerate(names) if axis in (name + _GRANULES, name)]
        order += parts
        shape.append(math.prod(weight.shape[i] for i in parts))  # type: ignore[attr-defined]
    return weight.transpose(order).reshape(shape)  # type: ignore[attr-defined]


def split_granules(weight: ArrayT, names: Names, granules: Mapping[str, int]) -> ArrayT:
    """Undoes `merge_granules`, with granules of the given sizes."""
    order: list[str] = []
    shape: list[int] = []
    for name, size in zip(logical_names(names), weight.shape, strict=True):  # type: ignore[attr-defined]
        if name + _GRANULES in names:
            order += [name + _GRANULES, name]
            shape += [size // granules[name], granules[name]]
        else:
            order.append(name)
            shape.append(size)
    return weight.reshape(shape).transpose([order.index(name) for name in names])  # type: ignore[attr-defined]


def join_granules(tree: Tree, axes: Tree) -> Tree:
    """Makes one granule of all granules of each axis: matrices of it then lie in one piece."""

    def join(weight: ArrayT, names: Names) -> ArrayT:
        merged = merge_granules(weight, names)
        sizes = dict(zip(logical_names(names), merged.shape, strict=True))  # type: ignore[attr-defined]
        return split_granules(merged, names, sizes)

    return jax.tree.map(join, tree, axes)


def narrow(tree: Tree, axes: Tree, sizes: Mapping[str, Size]) -> Tree:
    """`narrow_array` over a tree of weights and the tree of their axis names."""
    return jax.tree.map(lambda array, names: narrow_array(array, names, sizes), tree, axes)


def sizes_of(sub_model: SubModel, d_ff: int | None = None) -> dict[str, Size]:
    """The sizes of a sub-model's logical axes; with `d_ff`, those of one of its layers."""
    sizes: dict[str, Size] = {"d_model": sub_model.d_model, "heads": sub_model.num_heads}
    return sizes if d_ff is None else sizes | {"d_ff": d_ff}


def slice_model(params: Tree, axes: Tree, sub_model: SubModel) -> Tree:
    """Slices the weights of a TA into those of the plain model of `sub_model`.

    Args:
      params: weights of a TA, whose `blocks` hold one stack of all layers under "0".
      axes: their axis names.
      sub_model: what to keep.

    Returns:
      The plain model's weights: `blocks` hold one stack for each run of layers of equal width.
    """
    sizes = sizes_of(sub_model)
    sliced = {name: narrow(params[name], axes[name], sizes) for name in params if name != "blocks"}
    sliced["blocks"] = {
        str(i): narrow(
            params["blocks"]["0"],
            axes["blocks"]["0"],
            sizes | {_STACK: run.layers, "d_ff": run.d_ff},
        )
        for i, run in enumerate(sub_model.runs)
    }
    return sliced


def slice_axes(axes: Tree, sub_model: SubModel) -> Tree:
    """The axis names of `slice_model`'s result."""
    stack = axes["blocks"]["0"]
    return axes | {"blocks": {str(i): stack for i in range(len(sub_model.runs))}}


def units(names: Names, nest: Nest) -> tuple[int, ...]:
    """The steps in which sub-models may cut each axis of a weight; 0 for an axis that is always
    whole.
    """

    def unit(name: str) -> int:
        if name == _STACK or name.endswith(_GRANULES):
            return 1
        sizes = () if name + _GRANULES in names else nest.boundaries(name)
        return math.gcd(*sizes) if len(sizes) > 1 else 0

    return tuple(unit(name) for name in names)


def matrix_view(names: Names) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The positions of the (input, output) axes of a weight that multiplies activations, or None
    for all others.

    A matrix joins d_model with other axes. Axes before d_model's end of the contraction are its
    inputs: d_model itself unless it stands last. Embedding tables, norms and biases are no
    matrices.
    """
    own = [i for i, name in enumerate(names) if name != _STACK]
    if "d_model" not in names or len(own) < 2 or _TABLES & set(names):
        return None
    model = names.index("d_model")
    others = tuple(i for i in own if i != model)
    return (others, (model,)) if model == own[-1] else ((model,), others)


def table_view(names: Names) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The positions of the (entry, d_model) axes of an embedding table, or None for all others."""
    entries = tuple(i for i, name in enumerate(names) if name in _TABLES)
    return (entries, (names.index("d_model"),)) if entries and "d_model" in names else None


def fan_in(names: Names) -> tuple[int, ...]:
    """The positions of the axes that a weight sums over: a matrix's inputs, a table's d_model (as
    the tied head).
    """
    view = matrix_view(names)
    if view is not None:
        return view[0]
    return (names.index("d_model"),) if _TABLES & set(names) else ()


def is_decayed(names: Names) -> bool:
    """Whether weight decay applies: to matrices and tables, not to norms and biases."""
    return "d_model" in names and len([name for name in names if name != _STACK]) > 1


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
        logical = names[position].removesuffix(_GRANULES)
        boundaries = nest.boundaries(logical)
        if len(boundaries) < 2 or (logical == names[position] and logical + _GRANULES in names):
            continue
        inner = shape[names.index(logical)] if logical != names[position] else 1
        entries = jnp.arange(shape[position]) * inner
        own = jnp.asarray(boundaries)[
            jnp.searchsorted(jnp.asarray(boundaries), entries, side="right")
        ]
        scale = jnp.sqrt(boundaries[-1] / own).reshape(
            [-1 if i == position else 1 for i in range(len(shape))]
        )
        factor = scale if factor is None else factor * scale
    return factor


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a model costs.

    Attributes:
      parameters: numbers in its weights.
      bytes: at the storage type of the weights.
      flops_per_token: of one forward pass at a given sequence length: matmuls and the head (2 per
        weight), and causal attention counted at half. Norms, biases and activations are left out. A
        scorer's is counted whole.
    """

    parameters: int
    bytes: int
    flops_per_token: int


def count(shapes: Tree, axes: Tree, sub_model: SubModel, *, head_dim: int, seq_len: int) -> Counts:
    """Counts a sub-model without touching a weight.

    Args:
      shapes: the TA's weights, or anything with their `shape` and `dtype` (`jax.eval_shape`).
      axes: their axis names.
      sub_model: what to count.
      head_dim: width of a head.
      seq_len: tokens of the sequence that attention spans.
    """
    abstract = jax.eval_shape(lambda tree: slice_model(tree, axes, sub_model), shapes)
    attended = sub_model.num_layers * sub_model.num_heads * head_dim
    return count_weights(abstract, slice_axes(axes, sub_model), attended=attended, seq_len=seq_len)


def count_weights(weights: Tree, axes: Tree, *, attended: int, seq_len: int) -> Counts:
    """Counts a plain model: its weights or their shapes, their axis names, and `attended`, the
    width of all layers' heads together."""
    parameters = bytes_ = flops = 0
    scorer = "head" in axes  # With a head of its own, and without a causal mask.
    for leaf, names in zip(jax.tree.leaves(weights), _names(axes), strict=True):
        size = math.prod(leaf.shape)
        parameters += size
        bytes_ += size * leaf.dtype.itemsize
        if matrix_view(names) is not None or ("vocab" in names and not scorer):
            flops += 2 * size
    flops += (4 if scorer else 2) * attended * seq_len
    return Counts(parameters, bytes_, flops)


def _names(axes: Tree) -> list[Names]:
    return jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple))


def path_name(key_path: Any) -> str:
    """A key path of jax's as `blocks/0/mlp/w_in`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, Any]:
    """Flattens nested dicts to `{"blocks/0/mlp/w_in": leaf}`, tuples being leaves."""
    paths = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, tuple)
    )[0]
    return {path_name(path): leaf for path, leaf in paths}


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Undoes `flatten` on nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
