"""Matrices cut into blocks, and blocks of one shape in stacks.

Each axis is cut at the given boundaries first (a nest's sizes), then into parts of equal size, at
most `block_size`. The last part is padded with zeros where it is short. Blocks of one shape, from
whatever weight, form a bucket [K, m, n]; K is padded to a multiple, so that the bucket can be split
over devices.

Shape letters: K blocks, m and n rows and columns of a block, S matrices of a weight, M and N their
rows and columns.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

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

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the matrices of a weight of this shape."""
        num_rows = math.prod(shape[axis] for axis in self.rows)
        num_columns = math.prod(shape[axis] for axis in self.columns)
        return num_rows, num_columns

    def axis_order(self, num_axes: int) -> tuple[int, ...]:
        """The axes of the stack, then those of the rows, then those of the columns."""
        matrix_axes = (*self.rows, *self.columns)
        stack_axes = [axis for axis in range(num_axes) if axis not in matrix_axes]
        return (*stack_axes, *matrix_axes)


def default_view(shape: tuple[int, ...]) -> MatrixView | None:
    """The last two axes are the matrix, those before it a stack (such as scanned layers); vectors
    have none.
    """
    if len(shape) < 2:
        return None
    return MatrixView(rows=(len(shape) - 2,), columns=(len(shape) - 1,))


@dataclasses.dataclass(frozen=True)
class Segment:
    """`parts` parts of `size` entries that cover `length` entries from `start`; the last may be
    short.
    """

    start: int
    length: int
    parts: int
    size: int

    @property
    def window(self) -> slice:
        """The entries that are covered."""
        return slice(self.start, self.start + self.length)

    @property
    def padding(self) -> int:
        """Entries that the last part is short of."""
        return self.parts * self.size - self.length


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """Blocks of one weight: of all its matrices, one segment of rows by one of columns.

    Attributes:
      leaf: index of the weight.
      matrices: S.
      rows, columns: the segments.
    """

    leaf: int
    matrices: int
    rows: Segment
    columns: Segment

    @property
    def blocks_per_matrix(self) -> int:
        """Blocks of each matrix."""
        return self.rows.parts * self.columns.parts

    @property
    def num_blocks(self) -> int:
        """Blocks of all matrices."""
        return self.matrices * self.blocks_per_matrix

    def cut(self, weight_SMN: jax.Array) -> jax.Array:
        """Returns the blocks [K, m, n], matrix by matrix and row by row."""
        m, n = self.rows.size, self.columns.size
        segment = weight_SMN[:, self.rows.window, self.columns.window]

        if self.rows.padding or self.columns.padding:
            segment = jnp.pad(segment, ((0, 0), (0, self.rows.padding), (0, self.columns.padding)))

        # The axes of the grid come first, so that blocks follow one another row by row.
        tiles = segment.reshape(self.matrices, self.rows.parts, m, self.columns.parts, n)
        return tiles.transpose(0, 1, 3, 2, 4).reshape(-1, m, n)

    def join(self, blocks_KMN: jax.Array) -> jax.Array:
        """Undoes `cut`: returns the segment of each matrix, without padding."""
        m, n = self.rows.size, self.columns.size
        row_parts, column_parts = self.rows.parts, self.columns.parts

        tiles = blocks_KMN.reshape(self.matrices, row_parts, column_parts, m, n)
        tiles = tiles.transpose(0, 1, 3, 2, 4)
        segment = tiles.reshape(self.matrices, row_parts * m, column_parts * n)
        return segment[:, : self.rows.length, : self.columns.length]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Blocks of one shape.

    Attributes:
      shape: (m, n) of a block.
      sides: which sides have a preconditioner: ("L", "R"), or one of them.
      grids: where the blocks come from, in order.
      size: K, padded.
    """

    shape: tuple[int, int]
    sides: tuple[str, ...]
    grids: tuple[BlockGrid, ...]
    size: int

    @property
    def num_blocks(self) -> int:
        """Blocks that are not padding."""
        return sum(grid.num_blocks for grid in self.grids)


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
        stacks = []
        for grid in bucket.grids:
            weight_SMN = self._matrices(grid.leaf, leaves[grid.leaf])
            stacks.append(grid.cut(weight_SMN))

        # Blocks of zeros: their statistics stay zero, and their roots the identity.
        padding = bucket.size - bucket.num_blocks
        if padding:
            stacks.append(jnp.zeros((padding, *bucket.shape), stacks[0].dtype))

        # A concatenation of one array would still be a copy.
        return stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)

    def join(self, blocks: Mapping[str, jax.Array]) -> dict[int, jax.Array]:
        """Undoes `cut` of all buckets: returns each leaf that has blocks, by its index."""
        segments: dict[int, dict[tuple[int, int], jax.Array]] = {}
        for name, bucket in self.buckets.items():
            position = 0
            for grid in bucket.grids:
                grid_blocks = blocks[name][position : position + grid.num_blocks]
                position += grid.num_blocks

                # A weight's grids may lie in several buckets: their sizes differ with the cuts.
                corner = (grid.rows.start, grid.columns.start)
                segments.setdefault(grid.leaf, {})[corner] = grid.join(grid_blocks)

        return {leaf: self._leaf(leaf, by_corner) for leaf, by_corner in segments.items()}

    def matrix_ids(self, name: str, offsets: Sequence[int]) -> list[int]:
        """For each block of a bucket, padding left out, the number of its matrix; `offsets` is that
        of each leaf.
        """
        ids: list[int] = []
        for grid in self.buckets[name].grids:
            for matrix in range(grid.matrices):
                # A matrix has its blocks one after another, as `BlockGrid.cut` lays them.
                ids += [offsets[grid.leaf] + matrix] * grid.blocks_per_matrix
        return ids

    def num_matrices(self, leaf: int) -> int:
        """Matrices in the stack of a leaf; 0 where it has no blocks."""
        view = self.views[leaf]
        if view is None:
            return 0
        shape = self.shapes[leaf]
        return math.prod(shape) // math.prod(view.matrix_shape(shape))

    def _view(self, leaf: int) -> MatrixView:
        view = self.views[leaf]
        assert view is not None, "buckets hold leaves with a view alone"
        return view

    def _matrices(self, leaf: int, weight: jax.Array) -> jax.Array:
        """A leaf as a stack of matrices [S, M, N]."""
        view, shape = self._view(leaf), self.shapes[leaf]
        ordered = weight.transpose(view.axis_order(len(shape)))
        return ordered.reshape(-1, *view.matrix_shape(shape))

    def _leaf(self, leaf: int, segments: Mapping[tuple[int, int], jax.Array]) -> jax.Array:
        """Puts the segments of a leaf together, by their first row and column."""
        # Segments side by side are bands of rows, and these one above the other the matrix.
        bands = []
        for first_row in sorted({row for row, _ in segments}):
            corners = sorted(corner for corner in segments if corner[0] == first_row)
            band = [segments[corner] for corner in corners]
            bands.append(jnp.concatenate(band, axis=2))
        weight_SMN = jnp.concatenate(bands, axis=1)

        shape = self.shapes[leaf]
        order = self._view(leaf).axis_order(len(shape))
        ordered = weight_SMN.reshape([shape[axis] for axis in order])
        # Back from the order of stack, rows and columns to that of the weight.
        inverse_order = [order.index(axis) for axis in range(len(order))]
        return ordered.transpose(inverse_order)
