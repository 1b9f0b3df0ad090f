"""Cutting matrices into blocks, and stacking blocks of one shape.

Each axis is cut at the given boundaries first (a nest's sizes), then into parts of equal size, at
most `block_size`. The last part is padded with zeros where it is short. Blocks of one shape, from
whatever weight, form a bucket [K, m, n]; K is padded to a multiple, so that the bucket can be split
over devices.

Shape letters: K blocks, m and n rows and columns of a block, S matrices of a weight, M and N their
rows and columns.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """How a weight is read as a stack of matrices, and where these must be cut.

    Attributes:
      rows, columns: positions of the axes that together are the matrix's rows and columns; all
        others are the stack.
      row_cuts, column_cuts: boundaries that no block crosses: a nest's sizes along the rows and
        columns.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    row_cuts: tuple[int, ...] = ()
    column_cuts: tuple[int, ...] = ()


def default_view(shape: tuple[int, ...]) -> MatrixView | None:
    """The last two axes are the matrix, those before it a stack (such as scanned layers); vectors
    have none.
    """
    return MatrixView((len(shape) - 2,), (len(shape) - 1,)) if len(shape) >= 2 else None


@dataclasses.dataclass(frozen=True)
class _Segment:
    """`parts` parts of `size` entries that cover `length` entries from `start`; the last may be
    short.
    """

    start: int
    length: int
    parts: int
    size: int


def _segments(length: int, cuts: Sequence[int], block_size: int) -> list[_Segment]:
    ends = sorted({0, length, *(cut for cut in cuts if 0 < cut < length)})
    result = []
    for start, stop in itertools.pairwise(ends):
        parts = -(-(stop - start) // block_size)
        result.append(_Segment(start, stop - start, parts, -(-(stop - start) // parts)))
    return result


@dataclasses.dataclass(frozen=True)
class _Member:
    """A grid of blocks of one weight: all its matrices, one segment of rows by one of columns."""

    leaf: int
    matrices: int
    rows: _Segment
    columns: _Segment

    @property
    def num_blocks(self) -> int:
        return self.matrices * self.rows.parts * self.columns.parts


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Blocks of one shape.

    Attributes:
      shape: (m, n) of a block.
      sides: which sides have a preconditioner: ("L", "R"), or one of them.
      members: where the blocks come from, in order.
      size: K, padded.
    """

    shape: tuple[int, int]
    sides: tuple[str, ...]
    members: tuple[_Member, ...]
    size: int

    @property
    def num_blocks(self) -> int:
        """Blocks that are not padding."""
        return sum(member.num_blocks for member in self.members)


@dataclasses.dataclass(frozen=True)
class Blocking:
    """The blocks of a tree of weights.

    Attributes:
      views: the view of each leaf; None for a leaf without blocks.
      shapes: the shape of each leaf.
      buckets: by name, such as `128x64`.
    """

    views: tuple[MatrixView | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    buckets: dict[str, Bucket]

    def cut(self, name: str, leaves: Sequence[jax.Array]) -> jax.Array:
        """Returns the blocks [K, m, n] of a bucket; padding is zero."""
        bucket = self.buckets[name]
        m, n = bucket.shape
        stacks = []
        for member in bucket.members:
            x_SMN = self._matrices(member.leaf, leaves[member.leaf])
            rows, columns = member.rows, member.columns
            x = x_SMN[
                :,
                rows.start : rows.start + rows.length,
                columns.start : columns.start + columns.length,
            ]
            short = (rows.parts * m - rows.length, columns.parts * n - columns.length)
            if any(short):
                x = jnp.pad(x, ((0, 0), (0, short[0]), (0, short[1])))
            x = x.reshape(member.matrices, rows.parts, m, columns.parts, n)
            stacks.append(x.transpose(0, 1, 3, 2, 4).reshape(-1, m, n))
        padding = bucket.size - bucket.num_blocks
        if padding:
            stacks.append(jnp.zeros((padding, m, n), stacks[0].dtype))
        return jnp.concatenate(stacks) if len(stacks) > 1 else stacks[0]

    def join(self, blocks: dict[str, jax.Array]) -> dict[int, jax.Array]:
        """Undoes `cut` of all buckets: returns each leaf that has blocks, by its index."""
        pieces: dict[int, dict[tuple[int, int], jax.Array]] = {}
        for name, bucket in self.buckets.items():
            (m, n), position = bucket.shape, 0
            for member in bucket.members:
                rows, columns = member.rows, member.columns
                x = blocks[name][position : position + member.num_blocks]
                position += member.num_blocks
                x = x.reshape(member.matrices, rows.parts, columns.parts, m, n).transpose(
                    0, 1, 3, 2, 4
                )
                x = x.reshape(member.matrices, rows.parts * m, columns.parts * n)
                piece = x[:, : rows.length, : columns.length]
                pieces.setdefault(member.leaf, {})[rows.start, columns.start] = piece
        return {leaf: self._leaf(leaf, grid) for leaf, grid in pieces.items()}

    def matrix_ids(self, name: str, offsets: Sequence[int]) -> list[int]:
        """For each block of a bucket, padding left out, the number of its matrix; `offsets` is that
        of each leaf.
        """
        ids: list[int] = []
        for member in self.buckets[name].members:
            grid = member.rows.parts * member.columns.parts
            ids += [
                offsets[member.leaf] + matrix
                for matrix in range(member.matrices)
                for _ in range(grid)
            ]
        return ids

    def num_matrices(self, leaf: int) -> int:
        """Matrices in the stack of a leaf; 0 where it has no blocks."""
        view = self.views[leaf]
        return (
            0
            if view is None
            else math.prod(self.shapes[leaf]) // math.prod(self._matrix_shape(leaf))
        )

    def _order(self, leaf: int) -> tuple[int, ...]:
        view = self.views[leaf]
        assert view is not None
        own = (*view.rows, *view.columns)
        return (*(i for i in range(len(self.shapes[leaf])) if i not in own), *own)

    def _matrix_shape(self, leaf: int) -> tuple[int, int]:
        view, shape = self.views[leaf], self.shapes[leaf]
        assert view is not None
        return math.prod(shape[i] for i in view.rows), math.prod(shape[i] for i in view.columns)

    def _matrices(self, leaf: int, x: jax.Array) -> jax.Array:
        return x.transpose(self._order(leaf)).reshape(-1, *self._matrix_shape(leaf))

    def _leaf(self, leaf: int, grid: dict[tuple[int, int], jax.Array]) -> jax.Array:
        """Puts the pieces of a leaf together, by their first row and column."""
        starts = sorted({row for row, _ in grid})
        bands = [
            jnp.concatenate([grid[at] for at in sorted(grid) if at[0] == row], axis=2)
            for row in starts
        ]
        order = self._order(leaf)
        x = jnp.concatenate(bands, axis=1).reshape([self.shapes[leaf][i] for i in order])
        return x.transpose([order.index(i) for i in range(len(order))])


def make_blocking(
    leaves: Sequence[Any],
    views: Sequence[MatrixView | None],
    *,
    block_size: int,
    block_multiple: int,
    max_dim: int,
    one_sided: bool,
) -> Blocking:
    """Plans the blocks of a tree's leaves (anything with `shape`).

    Args:
      leaves: the weights.
      views: how each is read; None leaves it without blocks.
      block_size: largest side of a block.
      block_multiple: what the number of blocks of a bucket is padded to.
      max_dim: a matrix with a longer side than this has no blocks, or,
      one_sided: where the other side is not longer, blocks of the whole long side with one
        preconditioner.
    """
    found: dict[tuple[int, int, tuple[str, ...]], list[_Member]] = {}
    kept: list[MatrixView | None] = []
    for index, (leaf, view) in enumerate(zip(leaves, views, strict=True)):
        kept.append(None)
        if view is None or not math.prod(leaf.shape):
            continue
        rows, columns = (
            math.prod(leaf.shape[i] for i in axes) for axes in (view.rows, view.columns)
        )
        sides = tuple(side for side, length in (("L", rows), ("R", columns)) if length <= max_dim)
        if len(sides) < (1 if one_sided else 2):
            continue
        kept[-1] = view
        row_segments = (
            _segments(rows, view.row_cuts, block_size)
            if "L" in sides
            else [_Segment(0, rows, 1, rows)]
        )
        column_segments = (
            _segments(columns, view.column_cuts, block_size)
            if "R" in sides
            else [_Segment(0, columns, 1, columns)]
        )
        matrices = math.prod(leaf.shape) // (rows * columns)
        for row, column in itertools.product(row_segments, column_segments):
            found.setdefault((row.size, column.size, sides), []).append(
                _Member(index, matrices, row, column)
            )
    buckets = {}
    for (m, n, sides), members in found.items():
        count = sum(member.num_blocks for member in members)
        name = f"{m}x{n}" + ("" if len(sides) == 2 else f"_{sides[0]}")
        buckets[name] = Bucket(
            (m, n), sides, tuple(members), -(-count // block_multiple) * block_multiple
        )
    return Blocking(tuple(kept), tuple(tuple(leaf.shape) for leaf in leaves), buckets)
