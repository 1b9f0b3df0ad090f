"""A look at Shampoo's preconditioners: the blocks of a weight, whose they are, and
their spectra.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from matta_jax.optim._shampoo import Shampoo, ShampooState, tree_paths
from matta_jax.optim._slice import block_owners


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a weight.

    Attributes:
      in_student: whether the Student uses it; otherwise it is the TA's alone.
      statistics: L [m, m] and R [n, n], where the side has a preconditioner.
      residual: of its last roots.
      failures: gradients and roots that were not taken.
      age: steps since its roots were accepted; -1: never.
    """

    in_student: bool
    statistics: dict[str, np.ndarray]
    residual: float
    failures: int
    age: int

    def spectrum(self, side: str) -> np.ndarray:
        """Eigenvalues of the statistics, falling, relative to the largest; zeros where there are
        none.
        """
        values = np.maximum(np.linalg.eigvalsh(np.float64(self.statistics[side]))[::-1], 0.0)
        return values / values[0] if values[0] > 0 else values

    def effective_rank(self, side: str) -> float:
        """exp of the entropy of the spectrum (Roy & Vetterli 2007): 1 for one direction, m for all
        alike.
        """
        values = self.spectrum(side)
        share = values[values > 0] / max(values.sum(), 1e-300)
        return float(np.exp(-np.sum(share * np.log(share)))) if share.size else 0.0

    def condition(self, side: str, epsilon: float) -> float:
        """λ_max / λ_min of L + ε λ_max I, whose root is taken."""
        values = self.spectrum(side)
        return float((1 + epsilon) / (values[-1] + epsilon))


def blocks_of(
    state: ShampooState,
    *,
    settings: Shampoo,
    params: Any,
    views: Any,
    narrow: Callable[[Any], Any],
    weight: str,
    layer: int,
) -> list[Block]:
    """Returns the blocks of one layer of a weight, in the order of its entries.

    Args:
      state: of the optimiser.
      settings, params, views: as of `scale_by_shampoo`; of `params` the shapes alone count.
      narrow: slices a tree like `params` to the Student's.
      weight: path, such as `blocks/0/mlp/w_in`.
      layer: index of its first axis; without meaning for a weight that is not stacked.

    Raises:
      KeyError: no such weight, or one without blocks.
    """
    owners, where = block_owners(settings, params, views)
    by_path = dict(zip(tree_paths(owners), jax.tree.leaves(owners), strict=True))
    if weight not in by_path or not by_path[weight].any():
        raise KeyError(weight)
    own = by_path[weight][layer] if by_path[weight].ndim > 2 else by_path[weight]
    numbers, first = np.unique(own, return_index=True)
    student = set(
        np.unique(
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(narrow(owners))])
        ).tolist()
    )
    result = []
    for number in numbers[np.argsort(first)]:
        name, place = where[int(number)]
        bucket = state.buckets[name]
        result.append(
            Block(
                in_student=int(number) in student,
                statistics={
                    side: np.asarray(stack[place]) for side, stack in bucket.statistics.items()
                },
                residual=float(bucket.residual[place]),
                failures=int(bucket.failures[place]),
                age=int(bucket.age[place]),
            )
        )
    return result
