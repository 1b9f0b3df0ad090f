"""Numbers for the blocks of a tree of weights, entry by entry: whose they are in a slice of it."""

import dataclasses
from typing import Any

import jax
import numpy as np

from matta_jax.config import ShampooConfig
from matta_jax.optim._plan import blocking_of


@dataclasses.dataclass(frozen=True)
class BlockNumbering:
    """Numbers of blocks.

    Attributes:
      numbers: a tree like the weights that holds, for each entry, the number of its block from 1,
        or 0 where it has none.
      places: for each number the name of the bucket and the block's place in it.
    """

    numbers: Any
    places: dict[int, tuple[str, int]]


def number_blocks(settings: ShampooConfig, params: Any, views: Any) -> BlockNumbering:
    """Numbers the blocks of a tree of weights."""
    blocking = blocking_of(settings, params, views)
    blocks: dict[str, Any] = {}
    places: dict[int, tuple[str, int]] = {}

    for name, bucket in blocking.buckets.items():
        first = len(places) + 1
        # Those of padding are numbered too, though no entry has them: a place is then a row of
        # the bucket.
        numbers_K = np.arange(first, first + bucket.size)
        blocks[name] = numbers_K[:, None, None] * np.ones(bucket.shape, np.int64)
        for place, number in enumerate(numbers_K.tolist()):
            places[number] = (name, place)

    # Joined as gradients are, so that an entry's number is that of the block that updates it.
    joined = blocking.join(blocks)
    numbers = []
    for index, shape in enumerate(blocking.shapes):
        numbers.append(np.asarray(joined[index]) if index in joined else np.zeros(shape, int))
    return BlockNumbering(jax.tree.unflatten(jax.tree.structure(params), numbers), places)
