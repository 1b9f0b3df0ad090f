"""Many sub-models that run from one copy of the weights, and from one pool of caches.

The TA's weights stay in memory once. A sub-model's program slices them when it runs: what is as
large as the TA's own is not copied, and what is smaller lives as long as the program runs. All
caches have the TA's sizes, and a sub-model fills the part that it has heads and layers for.

Shape letters: S slots, H heads of a slot in one layer, L positions, E head_dim.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.models._architecture import Architecture
from matta_jax.models._decode import Cache, init_cache
from matta_jax.models._plain import logical_axes
from matta_jax.nesting import (
    BLOCKS,
    Names,
    Size,
    SubModel,
    Tree,
    layer_axes,
    logical_names,
    map_names,
    merge_granules,
    narrow_array,
    narrow_modules,
    narrow_names,
    outside_blocks,
    sizes_of,
    split_granules,
)

Pool = list[Any]
"""What each layer of the largest sub-model caches, of all slots: keys and values [S, H, L, E]."""


def split_stack(weight: jax.Array, names: Names) -> list[jax.Array]:
    """A weight of each layer of a stack by itself, without granules; `names` are of its axes in a
    layer.
    """
    merged = jax.vmap(lambda layer: merge_granules(layer, names))(weight)
    return [merged[i] for i in range(len(merged))]


def resident_weights(
    architecture: Architecture,
    params: Tree,
    split: Callable[[jax.Array, Names], list[jax.Array]] = split_stack,
) -> Tree:
    """The weights as sub-models are cut from them: each layer's by themselves, without granules.

    Args:
      architecture: of the weights: a plain model's, or a run's TA.
      params: the weights; those of layers are copied.
      split: as `split_stack`, called for one weight of a stack after another.
    """
    axes = logical_axes(architecture)
    layers: list[Tree] = []
    for i, run in enumerate(architecture.sub_model.runs):
        names = layer_axes(axes[BLOCKS][str(i)])
        parts = jax.tree.map(split, params[BLOCKS][str(i)], names)
        for j in range(len(run.layers)):
            layers.append(jax.tree.map(lambda part, j=j: part[j], parts, is_leaf=_is_list))
    return outside_blocks(params) | {"layers": layers}


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def resident_axes(architecture: Architecture) -> Tree:
    """The axis names of `resident_weights`, as nested dicts and lists of tuples."""
    axes = logical_axes(architecture)
    layers: list[Tree] = []
    for i, run in enumerate(architecture.sub_model.runs):
        names = map_names(logical_names, layer_axes(axes[BLOCKS][str(i)]))
        layers += [names] * len(run.layers)
    return outside_blocks(axes) | {"layers": layers}


def sub_model_weights(architecture: Architecture, weights: Tree, sub_model: SubModel) -> Tree:
    """The weights of a sub-model as `extend` reads them.

    Args:
      architecture: of the resident weights.
      weights: of `resident_weights`.
      sub_model: which; its layers are indices into theirs.
    """
    axes = logical_axes(architecture)
    outer = dict(weights)
    layers = outer.pop("layers")
    # A stack for each run of sizes, all with the same names.
    names = layer_axes(axes[BLOCKS]["0"])

    def cut(sizes: dict[str, Size], weight: jax.Array, names: Names) -> jax.Array:
        logical = logical_names(names)
        part = narrow_array(weight, logical, sizes)
        lengths = dict(zip(narrow_names(logical, sizes), part.shape, strict=True))
        return split_granules(part, narrow_names(names, sizes), lengths)

    modules = narrow_modules(outer, {name: axes[name] for name in outer}, sizes_of(sub_model))
    parts = []
    for layer in sub_model.layers:
        sizes = sizes_of(sub_model, sub_model.sizes_in(layer))
        parts.append(jax.tree.map(functools.partial(cut, sizes), layers[layer], names))
    return modules | {"layers": parts}


def init_pool(
    architecture: Architecture, *, slots: int, length: int, dtype: str = "float32"
) -> Pool:
    """Returns empty caches of all slots, each with room for `length` tokens of the largest
    sub-model.
    """
    make = functools.partial(init_cache, architecture, batch_size=slots, length=length, dtype=dtype)
    # From their shapes: caches that are made and then reshaped would stand there twice.
    return jax.tree.map(
        lambda leaf: jnp.zeros((slots, leaf.shape[0] // slots, *leaf.shape[1:]), leaf.dtype),
        jax.eval_shape(make),
    )


def cache_in(pool: Pool, architecture: Architecture, sub_model: SubModel, length: int) -> Cache:
    """The part of a pool that a sub-model uses, as `extend` reads it, up to a length.

    Args:
      pool: of `init_pool`.
      architecture: the plain one of the sub-model.
      sub_model: its layers are indices into the pool's.
      length: positions to hold, at most those of the pool.
    """

    def cut(leaf: jax.Array, shape: Any) -> jax.Array:
        part = leaf[:, : shape.shape[0], :length]
        return part.reshape(-1, *part.shape[2:])

    shapes = _one_slot(architecture)
    parts = []
    for layer, layer_shapes in zip(sub_model.layers, shapes, strict=True):
        parts.append(jax.tree.map(cut, pool[layer], layer_shapes))
    return parts


def put_cache(pool: Pool, cache: Cache, sub_model: SubModel) -> Pool:
    """Undoes `cache_in`: the pool with a sub-model's part in it."""

    def put(leaf: jax.Array, part: jax.Array) -> jax.Array:
        by_slot = part.reshape(leaf.shape[0], -1, *part.shape[1:])
        if by_slot.shape == leaf.shape:
            return by_slot
        return jax.lax.dynamic_update_slice(leaf, by_slot, (0, 0, 0, 0))

    changed = list(pool)
    for layer, part in zip(sub_model.layers, cache, strict=True):
        changed[layer] = jax.tree.map(put, pool[layer], part)
    return changed


@functools.lru_cache(maxsize=256)
def _one_slot(architecture: Architecture) -> Cache:
    """The shapes of a cache of one row and one position."""
    return jax.eval_shape(lambda: init_cache(architecture, batch_size=1, length=1))
