"""Weights on their way into files: read part by part, and let go."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.checkpoints import Units, fingerprint
from matta_jax.nesting import Tree, flatten
from matta_jax.packages._packaging import DTYPES


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight that is read when it is written.

    Attributes:
      shape: of all of it.
      dtype: of what is read.
      read: returns the part of an index, which has a slice for each axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[Any, ...]], np.ndarray]

    def whole(self) -> np.ndarray:
        """Reads all of it."""
        return self.read((slice(None),) * len(self.shape))

    def entry(self, i: int) -> np.ndarray:
        """Reads one entry of the first axis, which stays."""
        return self.read((slice(i, i + 1), *(slice(None),) * (len(self.shape) - 1)))

    def assembled(self, units: Units) -> np.ndarray:
        """All of it, read entry by entry where the first axis is cut to single ones, such as
        layers: what a reader needs besides is of one entry.
        """
        if units[:1] != (1,):
            return self.whole()
        array = np.empty(self.shape, self.dtype)
        for i in range(self.shape[0]):
            array[i : i + 1] = self.entry(i)
        return array

    def rounded(self, dtype: str) -> "Weight":
        """The weight in a type of `DTYPES`."""
        target = jnp.dtype(DTYPES[dtype])
        return Weight(self.shape, target, lambda index: self.read(index).astype(target, copy=False))


def in_memory(params: Tree) -> dict[str, Weight]:
    """Weights that are there, by path."""
    weights = {}
    for path, leaf in flatten(params).items():
        array = np.asarray(leaf)
        weights[path] = Weight(array.shape, array.dtype, array.__getitem__)
    return weights


class Recorded:
    """Takes the fingerprint of a weight while it is written, so that it is read once.

    Attributes:
      weight: reads and records; whole, or its entries in their order.
    """

    def __init__(self, weight: Weight, units: Units):
        self._source, self._units, self._prints = weight, units, list[str]()
        self.weight = dataclasses.replace(weight, read=self._read)

    def _read(self, index: tuple[Any, ...]) -> np.ndarray:
        part = self._source.read(index)
        self._prints.append(fingerprint(part, self._units))
        return part

    @property
    def fingerprint(self) -> str:
        """Of all that was read."""
        return "".join(self._prints)


def cast(params: Tree, dtype: str) -> Tree:
    """Rounds weights in memory to a type of `DTYPES`."""
    target = jnp.dtype(DTYPES[dtype])
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(target, copy=False), params)


def described(
    weights: Mapping[str, Weight], units: Mapping[str, Units], prints: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """For each weight, by path, what a manifest says of it: `shape`, `dtype`, `units`,
    `fingerprint`.
    """
    return {
        path: {
            "shape": list(weight.shape),
            "dtype": str(weight.dtype),
            "units": list(units[path]),
            "fingerprint": prints[path],
        }
        for path, weight in weights.items()
    }
