"""The Shampoo state of a sub-model: its blocks, whole, out of the TA's."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from matta_jax.optim._shampoo import (
    BlockState,
    Moments,
    Shampoo,
    ShampooState,
    scale_by_shampoo,
    tree_paths,
)


def block_owners(
    settings: Shampoo, params: Any, views: Any
) -> tuple[Any, dict[int, tuple[str, int]]]:
    """Numbers the blocks of a tree of weights.

    Returns:
      A tree like the weights that holds, for each entry, the number of its block from 1, or 0 where
      it has none; and for each number the name of the bucket and the block's place in it.
    """
    blocking = settings.blocking(params, views)
    numbers: dict[str, Any] = {}
    where: dict[int, tuple[str, int]] = {}
    for name, bucket in blocking.buckets.items():
        first = len(where) + 1
        numbers[name] = np.arange(first, first + bucket.size)[:, None, None] * np.ones(
            bucket.shape, np.int64
        )
        where |= {first + i: (name, i) for i in range(bucket.size)}
    leaves, treedef = jax.tree.flatten(params)
    joined = blocking.join(numbers)
    owners = [
        np.asarray(joined[i]) if i in joined else np.zeros(leaf.shape, int)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, owners), where


def slice_shampoo(
    state: ShampooState,
    *,
    settings: Shampoo,
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
      ValueError: the sub-model cuts through a block: the boundaries are not those of its nest.
    """
    owners, where = block_owners(settings, params, views)
    sub_owners = jax.tree.map(np.asarray, narrow(owners))
    blocking = settings.blocking(sub_owners, sub_views)
    fresh = scale_by_shampoo(settings, views=sub_views).init(
        jax.tree.map(lambda x: x.astype(np.float32), sub_owners)
    )
    buckets = {}
    for name, bucket in blocking.buckets.items():
        cut = np.asarray(blocking.cut(name, jax.tree.leaves(sub_owners)))[
            : bucket.num_blocks
        ].reshape(bucket.num_blocks, -1)
        numbers = cut.max(axis=1)
        if np.any((cut != 0) & (cut != numbers[:, None])) or any(
            where[number][0] != name for number in numbers
        ):
            raise ValueError(
                f"the sub-model cuts through blocks of {name}; cut the blocks at its nest's "
                "boundaries"
            )
        places = np.array([where[number][1] for number in numbers])
        take = lambda old, new, places=places: new.at[: len(places)].set(old[places])
        buckets[name] = BlockState(
            *jax.tree.map(take, tuple(state.buckets[name]), tuple(fresh.buckets[name]))
        )
    return ShampooState(
        state.count, buckets, _slice_rest(state.rest, fresh.rest, params, narrow), state.failures
    )


def _slice_rest(
    rest: Moments, fresh: Moments, params: Any, narrow: Callable[[Any], Any]
) -> Moments:
    """Slices the moments of the weights without blocks, as these are sliced."""
    paths, (leaves, treedef) = tree_paths(params), jax.tree.flatten(params)

    def part(
        old: dict[str, jax.Array] | None, new: dict[str, jax.Array] | None
    ) -> dict[str, jax.Array] | None:
        if old is None or new is None:
            return None
        filled = [
            old.get(path, np.zeros(leaf.shape)) for path, leaf in zip(paths, leaves, strict=True)
        ]
        sliced = narrow(jax.tree.unflatten(treedef, filled))
        by_path = dict(zip(tree_paths(sliced), jax.tree.leaves(sliced), strict=True))
        return {path: by_path[path] for path in new}

    return Moments(*(part(old, new) for old, new in zip(rest, fresh, strict=True)))
