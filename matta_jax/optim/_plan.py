"""The plan of a tree's blocks: which weights have them, and where these end."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax

from matta_jax.config import ShampooConfig
from matta_jax.optim._blocks import (
    BlockGrid,
    Blocking,
    Bucket,
    MatrixView,
    Segment,
    default_view,
)

# What blocks of one bucket have in common: rows, columns, and the sides with a preconditioner.
_BucketKey = tuple[int, int, tuple[str, ...]]


def blocking_of(settings: ShampooConfig, params: Any, views: Any = None) -> Blocking:
    """Plans the blocks of a tree of weights.

    A matrix with a side longer than `settings.max_dim` has no blocks, or, with
    `beyond_max_dim="one_sided"` and a short other side, blocks of the whole long side with one
    preconditioner.

    Args:
      settings: sizes of blocks, and which matrices have them.
      params: the weights, or anything with their shapes.
      views: a tree like the weights with a `MatrixView` or None (no blocks) for each; by default
        that of `default_view`.
    """
    shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(params))
    leaf_views = _leaf_views(params, views)

    block_views: list[MatrixView | None] = []
    grids: dict[_BucketKey, list[BlockGrid]] = {}
    for index, (shape, view) in enumerate(zip(shapes, leaf_views, strict=True)):
        sides = _preconditioned_sides(settings, shape, view)
        if view is None or not sides:
            block_views.append(None)
            continue

        # Blocks of one shape are one program, whatever weight they are of.
        block_views.append(view)
        for grid in _grids_of(settings, index, shape, view, sides):
            key = (grid.rows.size, grid.columns.size, sides)
            grids.setdefault(key, []).append(grid)

    buckets = {}
    for (m, n, sides), members in grids.items():
        name = f"{m}x{n}" if len(sides) == 2 else f"{m}x{n}_{sides[0]}"
        buckets[name] = _bucket((m, n), sides, members, settings.block_multiple)
    return Blocking(tuple(block_views), shapes, buckets)


def _leaf_views(params: Any, views: Any) -> list[MatrixView | None]:
    """The view of each leaf, in the order of the leaves."""
    if views is None:
        return [default_view(tuple(leaf.shape)) for leaf in jax.tree.leaves(params)]

    # Up to the weights' own structure: None stands for a leaf here, where JAX sees an empty tree.
    structure: Any = jax.tree.structure(params)
    return structure.flatten_up_to(views)


def _preconditioned_sides(
    settings: ShampooConfig, shape: tuple[int, ...], view: MatrixView | None
) -> tuple[str, ...]:
    """The sides of a weight's matrices that have a preconditioner; () for no blocks."""
    if view is None or not math.prod(shape):
        return ()

    lengths = zip("LR", view.matrix_shape(shape), strict=True)
    sides = tuple(side for side, length in lengths if length <= settings.max_dim)

    fewest = 1 if settings.beyond_max_dim == "one_sided" else 2
    return sides if len(sides) >= fewest else ()


def _grids_of(
    settings: ShampooConfig,
    leaf: int,
    shape: tuple[int, ...],
    view: MatrixView,
    sides: tuple[str, ...],
) -> list[BlockGrid]:
    num_rows, num_columns = view.matrix_shape(shape)
    num_matrices = math.prod(shape) // (num_rows * num_columns)

    # A side without a preconditioner need not be cut: what a block costs there is linear in it.
    row_segments = [Segment(0, num_rows, 1, num_rows)]
    if "L" in sides:
        row_segments = _segments(num_rows, view.row_cuts, settings.block_size)
    column_segments = [Segment(0, num_columns, 1, num_columns)]
    if "R" in sides:
        column_segments = _segments(num_columns, view.column_cuts, settings.block_size)

    return [
        BlockGrid(leaf, num_matrices, rows, columns)
        for rows, columns in itertools.product(row_segments, column_segments)
    ]


def _segments(length: int, cuts: Sequence[int], block_size: int) -> list[Segment]:
    """The stretches between cuts, each in the fewest parts of equal size that are small enough."""
    inner_cuts = {cut for cut in cuts if 0 < cut < length}
    segments = []
    for start, stop in itertools.pairwise(sorted({0, length} | inner_cuts)):
        # Equal parts: full ones with a small remainder would make a bucket of odd blocks.
        parts = math.ceil((stop - start) / block_size)
        size = math.ceil((stop - start) / parts)
        segments.append(Segment(start, stop - start, parts, size))
    return segments


def _bucket(
    shape: tuple[int, int], sides: tuple[str, ...], grids: Sequence[BlockGrid], multiple: int
) -> Bucket:
    num_blocks = sum(grid.num_blocks for grid in grids)
    # So that as many devices can have equal shares.
    padded = math.ceil(num_blocks / multiple) * multiple
    return Bucket(shape, sides, tuple(grids), padded)
