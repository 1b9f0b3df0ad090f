"""Where the tensors of an extracted model came from: the part of a TA's tensor that each is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax.checkpoints import Source, StoredArray
from matta_jax.nesting import (
    LAYERS,
    MEMBERS,
    Names,
    Pick,
    Size,
    SubModel,
    flatten,
    narrow_index,
    narrow_names,
    parent_path,
    run_sizes,
    sizes_of,
    slice_axes,
)


def origins_of(source: Source, sub_model: SubModel) -> dict[str, dict[str, Any]]:
    """For each tensor of the extracted model, by path: `axes`, the TA's tensor (`parent`), what was
    `kept` of each of its axes, and the fingerprint of that part (`parent_fingerprint`).
    """
    # Flat, because several tensors of the extracted model, of its runs of layers, have one parent.
    stored = flatten(source.stored)
    names = flatten(source.axes)

    origins = {}
    for path in flatten(slice_axes(source.axes, sub_model)):
        parent, run = parent_path(path)
        sizes = sizes_of(sub_model) if run is None else run_sizes(sub_model, run)
        part = _part(stored[parent], names[parent], sizes)
        origins[path] = {"parent": parent, **part}
    return origins


def _part(stored: StoredArray, names: Names, sizes: Mapping[str, Size]) -> dict[str, Any]:
    index = narrow_index(stored.shape, names, sizes)
    # An array of one byte has the shape of the part, and takes no room.
    shape = np.broadcast_to(np.int8(0), stored.shape)[index].shape
    part_sizes: dict[str, Any] = dict(zip(names, shape, strict=True))
    # Of all axes but these a prefix is kept, which its length tells.
    for axis in (LAYERS, MEMBERS):
        size = sizes.get(axis)
        if axis in part_sizes and isinstance(size, tuple):
            part_sizes[axis] = list(size)
        elif axis in part_sizes and isinstance(size, Pick):
            part_sizes[axis] = [size.entry]
    return {
        "axes": list(narrow_names(names, sizes)),
        "kept": part_sizes,
        "parent_fingerprint": stored.part(index),
    }
