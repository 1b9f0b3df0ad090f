"""Our weights as Hugging Face's tensors, and back.

Stock models have one size for all layers. Narrower layers are padded with zero neurons, and fewer
heads with zero heads: the function is the same, the cost is that of the widest. What was there
before the padding stands in config.json under `matta_jax`, so that an import takes it off again.
A layout that gives each layer its own room (`_mixed.py`) pads nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.nesting import (
    BLOCKS,
    Names,
    Run,
    logical_names,
    merge_granules,
    split_granules,
)
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.packages._weights import Weight
from matta_jax.packages.hf._layout import Dims, Layout, Place

Reader = Callable[[tuple[Any, ...]], np.ndarray]
"""Returns the part of an array that an index names."""


def to_tensors(
    layout: Layout,
    weights: Mapping[str, Weight],
    names: Mapping[str, Names],
    architecture: Architecture,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a model, in the order of `tensor_shapes`, and reads one weight of a
    layer at a time.

    Args:
      layout: of its kind.
      weights: ours, by path.
      names: their axis names, by path.
      architecture: of the model.
    """
    room = layout.room(architecture)
    for path, place in layout.outer(architecture).items():
        yield from _foreign(weights[path].whole(), names[path], place, room)

    layer = 0
    places = layout.layer(architecture)
    for i, run in enumerate(architecture.sub_model.runs):
        for j in range(len(run.layers)):
            room = layout.layer_room(architecture, layer)
            for weight, place in places.items():
                path = f"{BLOCKS}/{i}/{weight}"
                part = weights[path].entry(j)[0]
                yield from _foreign(part, names[path][1:], place.in_layer(layer), room)
            layer += 1


def tensor_shapes(layout: Layout, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model, by name."""
    room = layout.room(architecture)
    places = layout.layer(architecture).values()
    shapes: dict[str, tuple[int, ...]] = {}
    for place in layout.outer(architecture).values():
        shapes |= dict.fromkeys(place.tensors, _shape_of(place.dims, room))
    for layer in range(architecture.num_layers):
        room = layout.layer_room(architecture, layer)
        for place in places:
            shapes |= dict.fromkeys(place.in_layer(layer).tensors, _shape_of(place.dims, room))
    return shapes


def _foreign(
    weight: np.ndarray, axes: Names, place: Place, room: Mapping[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """A weight as foreign tensors, filled up with zeros."""
    merged, logical = merge_granules(weight, axes), logical_names(axes)
    for i, tensor in enumerate(place.tensors):
        part, part_axes = merged, logical
        if place.stack is not None:
            part = np.take(merged, i, axis=logical.index(place.stack))
            part_axes = _without(logical, place.stack)
        # A dimension of Hugging Face's joins several of our axes, such as heads and head_dim:
        # padded while they are apart, each head and each of query, key and value keeps its place.
        order = [name for dim in place.dims for name in dim]
        part = part.transpose([part_axes.index(name) for name in order])
        padding = [(0, room[name] - n) for name, n in zip(order, part.shape, strict=True)]
        yield tensor, np.pad(part, padding).reshape(_shape_of(place.dims, room))


def _without(names: Names, axis: str) -> Names:
    return tuple(name for name in names if name != axis)


def _shape_of(dims: Dims, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(np.prod([sizes[name] for name in dim])) for dim in dims)


def tensor_readers(
    layout: Layout,
    tensors: ForeignTensors,
    architecture: Architecture,
    names: Mapping[str, Names],
) -> dict[str, Reader]:
    """For each of our weights, by path, a function that reads the part of an index from foreign
    tensors.

    Raises:
      UserError: tensors are missing, or of other shapes than the config says.
    """
    _check_tensors(layout, tensors, architecture)

    result: dict[str, Reader] = {}
    for path, place in layout.outer(architecture).items():
        result[path] = _Weight(layout, tensors, architecture, place, names[path]).read

    places = layout.layer(architecture)
    for i, run in enumerate(architecture.sub_model.runs):
        for weight, place in places.items():
            path = f"{BLOCKS}/{i}/{weight}"
            stack = _Weight(layout, tensors, architecture, place, names[path][1:])
            result[path] = _Stack(stack, run).read
    return result


def _check_tensors(layout: Layout, tensors: ForeignTensors, architecture: Architecture) -> None:
    names = set()
    for tensor, shape in tensor_shapes(layout, architecture).items():
        name = tensor.removeprefix(layout.prefix)
        tensors.check(name, shape)
        names.add(name)
    layout.check_head(tensors, architecture)

    places = layout.layer(architecture).values()
    beyond = next(iter(places)).in_layer(architecture.num_layers).tensors[0]
    stem = beyond.removeprefix(layout.prefix).partition(f"{architecture.num_layers}.")[0]
    next_layer = f"{stem}{architecture.num_layers}."
    if any(name.startswith(next_layer) for name in tensors.files):
        raise UserError(
            f"{str(tensors.folder)!r}: there are more layers than the {architecture.num_layers} "
            f"that config.json says; {tensors.mend}"
        )
    tensors.check_names(names, layout.ignored, layout.title)


class _Weight:
    """One of our weights, or of a stack one layer, in foreign tensors."""

    def __init__(
        self,
        layout: Layout,
        tensors: ForeignTensors,
        architecture: Architecture,
        place: Place,
        axes: Names,
    ):
        self._layout, self._tensors, self._architecture = layout, tensors, architecture
        self._place, self._axes = place, axes

    def read(self, index: tuple[Any, ...]) -> np.ndarray:
        """Returns the part of an index."""
        room = self._layout.room(self._architecture)
        return self.whole(self._place, self._architecture.sub_model.sizes, room)[index]

    def in_layer(self, layer: int, sizes: Mapping[str, int]) -> np.ndarray:
        """Of a layer of these sizes."""
        room = self._layout.layer_room(self._architecture, layer)
        return self.whole(self._place.in_layer(layer), sizes, room)

    def whole(self, place: Place, sizes: Mapping[str, int], room: Mapping[str, int]) -> np.ndarray:
        """The weight, without the padding. Raises ValueError where that is not zero."""
        logical = logical_names(self._axes)
        part_axes = logical if place.stack is None else _without(logical, place.stack)
        parts = []
        for tensor in place.tensors:
            padded = self._tensors[tensor]
            parts.append(_without_padding(tensor, padded, place, sizes, room))
        order = [name for dim in place.dims for name in dim]
        parts = [part.transpose([order.index(axis) for axis in part_axes]) for part in parts]
        weight = parts[0]
        if place.stack is not None:
            weight = np.stack(parts, axis=logical.index(place.stack))
        return split_granules(weight, self._axes, self._architecture.granules)


def _without_padding(
    tensor: str,
    padded: np.ndarray,
    place: Place,
    sizes: Mapping[str, int],
    room: Mapping[str, int],
) -> np.ndarray:
    """A foreign tensor by our axes. Raises ValueError where its padding is not zero."""
    order = [name for dim in place.dims for name in dim]
    padded = padded.reshape([room[axis] for axis in order])
    part_sizes = {**room, **sizes}
    part = padded[tuple(slice(0, part_sizes[axis]) for axis in order)]
    # What is cut off must add nothing, or the import would be another function.
    if np.count_nonzero(padded) != np.count_nonzero(part):
        raise ValueError(f"tensor {tensor} is not zero outside the sizes of config.json")
    return part


class _Stack:
    """One of our weights of a run of layers."""

    def __init__(self, weight: _Weight, run: Run):
        self._weight, self._run = weight, run

    def read(self, index: tuple[Any, ...]) -> np.ndarray:
        """Returns the part of an index."""
        layers = np.array(self._run.layers)[index[0]]
        # Filled layer by layer: a list of all layers beside their stack would be twice its size.
        stack = None
        for row, layer in enumerate(layers):
            part = self._weight.in_layer(int(layer), self._run.sizes)
            if stack is None:
                stack = np.empty((len(layers), *part.shape), part.dtype)
            stack[row] = part
        assert stack is not None, "an index has at least one layer"
        return stack[(slice(None), *index[1:])]
