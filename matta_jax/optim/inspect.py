"""A look at Shampoo's preconditioners: the blocks of a weight, whose they are, and
their spectra.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from matta_jax.config import ShampooConfig
from matta_jax.optim._numbering import number_blocks
from matta_jax.optim._state import BlockState, ShampooState, tree_paths


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
        rising = np.linalg.eigvalsh(np.float64(self.statistics[side]))
        # Rounding makes the smallest negative.
        values = np.maximum(rising[::-1], 0.0)
        return values / values[0] if values[0] > 0 else values

    def effective_rank(self, side: str) -> float:
        """exp of the entropy of the spectrum (Roy & Vetterli 2007): 1 for one direction, m for all
        alike.
        """
        values = self.spectrum(side)
        shares = values[values > 0] / max(values.sum(), 1e-300)
        if not shares.size:
            return 0.0
        return float(np.exp(-np.sum(shares * np.log(shares))))

    def condition(self, side: str, epsilon: float) -> float:
        """λ_max / λ_min of L + ε λ_max I, whose root is taken."""
        values = self.spectrum(side)
        return float((1 + epsilon) / (values[-1] + epsilon))


def blocks_of(  # noqa: PLR0913  Keyword-only: the settings of a run.
    state: ShampooState,
    *,
    settings: ShampooConfig,
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
    numbering = number_blocks(settings, params, views)
    # An entry of a weight without blocks has number 0.
    leaves = jax.tree.leaves(numbering.numbers)
    by_path = dict(zip(tree_paths(numbering.numbers), leaves, strict=True))
    if weight not in by_path or not by_path[weight].any():
        raise KeyError(weight)

    # Of scanned layers the first axis is the layer.
    entries = by_path[weight]
    if entries.ndim > 2:
        entries = entries[layer]
    numbers, first_entry = np.unique(entries, return_index=True)

    # A block is the Student's where any entry of it is: no block crosses the nest's boundaries.
    student_leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(narrow(numbering.numbers))]
    student_numbers = set(np.unique(np.concatenate(student_leaves)).tolist())

    # `np.unique` sorts by number; a reader looks from the first entry to the last.
    blocks = []
    for number in numbers[np.argsort(first_entry)].tolist():
        name, place = numbering.places[number]
        blocks.append(_block_at(state.buckets[name], place, number in student_numbers))
    return blocks


def _block_at(bucket: BlockState, place: int, in_student: bool) -> Block:
    return Block(
        in_student=in_student,
        statistics={side: np.asarray(stack[place]) for side, stack in bucket.statistics.items()},
        residual=float(bucket.residual[place]),
        failures=int(bucket.failures[place]),
        age=int(bucket.age[place]),
    )
