"""Muon by blocks: each part of a matrix that the nest's sizes cut out is orthogonalised by itself.

A sub-model's matrices are whole blocks of its TA's, so that their update is the one that they would
get alone: directions of the TA's other parts do not take up those of the Student.

References: Jordan 2024 (Muon); Liu et al. 2025, arXiv 2502.16982 (a constant RMS).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from matta_jax.nesting import (
    GRANULES,
    Names,
    Nest,
    Tree,
    flatten,
    is_granulated,
    matrix_view,
    path_name,
)

# The RMS of AdamW's updates: its learning rates carry over (Liu et al. 2025).
_UPDATE_RMS = 0.2


class _Cut(NamedTuple):
    """Where an axis of a stored weight is split."""

    axis: int
    places: tuple[int, ...]


def orthogonalise_blocks(axes: Tree, nest: Nest | None = None) -> optax.GradientTransformation:
    """Replaces each matrix by the nearest one with orthogonal rows or columns, block by block.

    An update [M, N] of a block has a root mean square of 0.2, whatever its size.

    Args:
      axes: the names of the axes of each weight; only matrices may come in.
      nest: whose sizes cut them; None leaves them whole.
    """
    names_of = flatten(axes)
    # No momentum of its own: the chain has that before it, in the form of the weights.
    newton_schulz = optax.contrib.scale_by_muon

    def update(updates: Any, params: Any = None) -> Any:
        del params
        leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
        blocks, numbers, cuts = [], [], []
        for key_path, leaf in leaves:
            names = names_of[path_name(key_path)]
            cuts.append(_cuts(names, leaf.shape, nest))
            blocks.append(_split(leaf, cuts[-1]))
            numbers.append([_dimension_numbers(names)] * len(blocks[-1]))

        rule = newton_schulz(beta=0.0, nesterov=False, weight_dimension_numbers=numbers)
        orthogonal, _ = rule.update(blocks, rule.init(blocks))

        joined = []
        for leaf_blocks, leaf_numbers, leaf_cuts in zip(orthogonal, numbers, cuts, strict=True):
            scaled = [_rescale(block, leaf_numbers[0]) for block in leaf_blocks]
            joined.append(_join(scaled, leaf_cuts))
        return jax.tree.unflatten(treedef, joined)

    return optax.stateless(update)


def _dimension_numbers(names: Names) -> optax.contrib.MuonDimensionNumbers:
    view = matrix_view(names)
    assert view is not None, "only matrices are orthogonalised"
    return optax.contrib.MuonDimensionNumbers(reduction_axis=view[0], output_axis=view[1])


def _cuts(names: Names, shape: Sequence[int], nest: Nest | None) -> list[_Cut]:
    """Where the nest cuts the axes of a weight; a granulated axis is cut between granules."""
    if nest is None:
        return []

    cuts = []
    for position, name in enumerate(names):
        logical = name.removesuffix(GRANULES)
        # What lies inside of granules is never cut.
        if name == logical and is_granulated(name, names):
            continue
        step = nest.granule(logical) if name != logical else 1
        places = {size // step for size in nest.boundaries(logical)}
        inner = tuple(sorted(place for place in places if 0 < place < shape[position]))
        if inner:
            cuts.append(_Cut(position, inner))
    return cuts


def _split(leaf: jax.Array, cuts: Sequence[_Cut]) -> list[jax.Array]:
    blocks = [leaf]
    for cut in cuts:
        blocks = [part for block in blocks for part in jnp.split(block, cut.places, cut.axis)]
    return blocks


def _join(blocks: list[jax.Array], cuts: Sequence[_Cut]) -> jax.Array:
    """Undoes `_split`: the last axis that was cut is joined first."""
    for cut in reversed(cuts):
        count = len(cut.places) + 1
        groups = [blocks[first : first + count] for first in range(0, len(blocks), count)]
        blocks = [jnp.concatenate(group, cut.axis) for group in groups]
    (leaf,) = blocks
    return leaf


def _rescale(block: jax.Array, numbers: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    # An orthogonal matrix [M, N] has a root mean square of 1 / sqrt(max(M, N)).
    sides = []
    for side in (numbers.reduction_axis, numbers.output_axis):
        positions = side if isinstance(side, tuple) else (side,)
        sides.append(math.prod(block.shape[i] for i in positions))
    return block * (_UPDATE_RMS * math.sqrt(max(sides)))
