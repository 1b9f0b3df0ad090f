"""The Shampoo state of a sub-model: its blocks, whole, out of the TA's."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from matta_jax.config import ShampooConfig
from matta_jax.optim._blocks import Blocking
from matta_jax.optim._numbering import BlockNumbering, number_blocks
from matta_jax.optim._plan import blocking_of
from matta_jax.optim._shampoo import scale_by_shampoo
from matta_jax.optim._state import BlockState, Moments, ShampooState, tree_paths


def slice_shampoo(
    state: ShampooState,
    *,
    settings: ShampooConfig,
    params: Any,
    views: Any,
    sub_views: Any,
    narrow: Callable[[Any], Any],
) -> ShampooState:
    """Takes a sub-model's state out of its TA's.

    Args:
      state: of the TA.
      settings: of the transform.
      params: the TA's weights, or anything with their shapes.
      views: of the TA's weights.
      sub_views: of the sub-model's weights, with the same boundaries.
      narrow: slices a tree like the TA's weights into one like the sub-model's.

    Raises:
      ValueError: the sub-model cuts through a block, as the boundaries are not those of its nest;
        or has blocks where the TA has none or others, as `max_dim` lies between their sizes.
    """
    numbering = number_blocks(settings, params, views)
    sub_numbers = jax.tree.map(np.asarray, narrow(numbering.numbers))
    blocking = blocking_of(settings, sub_numbers, sub_views)
    _check_sides(settings, blocking_of(settings, params, views), blocking, tree_paths(sub_numbers))

    # The shapes of the sub-model's state, and what padding holds.
    sub_params = jax.tree.map(lambda numbers: numbers.astype(np.float32), sub_numbers)
    initial = scale_by_shampoo(settings, views=sub_views).init(sub_params)

    buckets = {}
    for name in blocking.buckets:
        places = _places_of(name, blocking, jax.tree.leaves(sub_numbers), numbering)
        buckets[name] = _take_blocks(state.buckets[name], initial.buckets[name], places)

    moments = _slice_moments(state.rest, initial.rest, params, narrow)
    return ShampooState(state.count, buckets, moments, state.failures)


def _check_sides(
    settings: ShampooConfig, ta_blocking: Blocking, blocking: Blocking, paths: list[str]
) -> None:
    """Raises where a sub-model's matrix has preconditioners that the TA's has not."""
    ta_sides, sides = _sides_by_leaf(ta_blocking), _sides_by_leaf(blocking)
    for leaf, path in enumerate(paths):
        if sides.get(leaf, ()) != ta_sides.get(leaf, ()):
            view = ta_blocking.views[leaf] or blocking.views[leaf]
            assert view is not None, "blocks are of leaves with a view alone"
            longest = max(view.matrix_shape(ta_blocking.shapes[leaf]))
            raise ValueError(
                f"{path} has a side of {longest} in the TA, beyond "
                f"shampoo.max_dim={settings.max_dim}, and within it in the sub-model, whose blocks "
                f"have no state in the TA's: train with shampoo.max_dim={longest} or more, or "
                "extract without the optimiser state"
            )


def _sides_by_leaf(blocking: Blocking) -> dict[int, tuple[str, ...]]:
    sides = {}
    for bucket in blocking.buckets.values():
        for grid in bucket.grids:
            sides[grid.leaf] = bucket.sides
    return sides


def _places_of(
    name: str, blocking: Blocking, sub_numbers: list[Any], numbering: BlockNumbering
) -> np.ndarray:
    """Where the TA's bucket of this name holds the sub-model's blocks, in their order."""
    num_blocks = blocking.buckets[name].num_blocks
    blocks = np.asarray(blocking.cut(name, sub_numbers))[:num_blocks].reshape(num_blocks, -1)

    # The entries of a whole block have one number; those of its padding have 0.
    numbers = blocks.max(axis=1)
    is_mixed = (blocks != 0) & (blocks != numbers[:, None])
    if np.any(is_mixed) or any(numbering.places[number][0] != name for number in numbers):
        raise ValueError(
            f"the sub-model cuts through blocks of {name}: shampoo.block_size must divide the "
            "nest's granules; extract without the optimiser state"
        )
    return np.array([numbering.places[number][1] for number in numbers])


def _take_blocks(ta_blocks: BlockState, initial: BlockState, places: np.ndarray) -> BlockState:
    def take(ta_leaf: Any, initial_leaf: jax.Array) -> jax.Array:
        return initial_leaf.at[: len(places)].set(ta_leaf[places])

    # As tuples: a state out of a checkpoint has the fields, not the class.
    return BlockState(*jax.tree.map(take, tuple(ta_blocks), tuple(initial)))


def _slice_moments(
    moments: Moments, initial: Moments, params: Any, narrow: Callable[[Any], Any]
) -> Moments:
    """Slices the moments of the weights without blocks, as these are sliced."""
    mu = _slice_by_path(moments.mu, initial.mu, params, narrow)
    nu = _slice_by_path(moments.nu, initial.nu, params, narrow)
    return Moments(mu, nu)


def _slice_by_path(
    moments: dict[str, jax.Array] | None,
    initial: dict[str, jax.Array] | None,
    params: Any,
    narrow: Callable[[Any], Any],
) -> dict[str, jax.Array] | None:
    if moments is None or initial is None:
        return None

    # `narrow` wants a whole tree: zeros stand in for the weights with blocks.
    leaves, treedef = jax.tree.flatten(params)
    filled = []
    for path, leaf in zip(tree_paths(params), leaves, strict=True):
        filled.append(moments.get(path, np.zeros(leaf.shape)))

    sliced = narrow(jax.tree.unflatten(treedef, filled))
    by_path = dict(zip(tree_paths(sliced), jax.tree.leaves(sliced), strict=True))
    return {path: by_path[path] for path in initial}
