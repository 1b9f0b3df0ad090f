"""Arrays that stay on disk until a part of them is asked for."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from matta_jax.checkpoints._pieces import Units, fingerprint, grid_of, stored_shape, take
from matta_jax.errors import UserError

Index = tuple[Any, ...]  # For each axis a slice, or an array of the entries to keep.


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array on disk. Indexing reads the pieces asked for, and no others, and verifies them.

    Attributes:
      name: what errors call it.
      shape, dtype: of the whole.
      units: how it is cut; an index keeps whole pieces.
      fingerprint: of its pieces.
      mend: what a user may do about damage.
      read: returns a part, unverified.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    units: Units
    fingerprint: str
    mend: str
    read: Callable[[Index], np.ndarray]

    def part(self, index: Index) -> str:
        """The fingerprints of the pieces that an index keeps, without reading them."""
        grid = tuple(
            pieces
            for n, unit, own in zip(self.shape, self.units, index, strict=True)
            for pieces in _pieces(n, unit, own)
        )
        return take(self.fingerprint, grid_of(self.shape, self.units), grid)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part. Raises UserError when it is damaged."""
        expected = self.part(index)
        entries = np.arange(self.shape[0])[index[0]] if self.units[:1] == (1,) else ()
        try:
            if len(entries) > 1:  # One by one, so that a reader's own copies stay small.
                rest = [
                    len(np.arange(size)[own])
                    for size, own in zip(self.shape[1:], index[1:], strict=True)
                ]
                part = np.empty((len(entries), *rest), self.dtype)
                for row, entry in zip(part, entries, strict=True):
                    row[...] = self.read((slice(entry, entry + 1), *index[1:]))[0]
            else:
                part = self.read(index)
        except Exception as error:  # Readers raise many kinds for damaged files.
            raise unreadable(self.name, error, self.mend) from None
        if fingerprint(part, self.units) != expected:
            raise UserError(f"{self.name} differs from its fingerprint; {self.mend}")
        return part

    def whole(self) -> np.ndarray:
        """Reads all of it."""
        return self[(slice(None),) * len(self.shape)]


def unreadable(name: str, error: Exception, mend: str) -> UserError:
    """The one line about an array that a library could not read."""
    return UserError(f"{name} cannot be read ({' '.join(str(error).split())[:160]}); {mend}")


def stored_arrays(
    path: pathlib.Path,
    name: str,
    meta: Mapping[str, Any],
    *,
    mend: str,
    leaves: Collection[str] | None = None,
) -> dict[str, StoredArray]:
    """Opens the arrays of one tree of a checkpoint, or some of its `leaves`, by path, and reads
    none.

    Raises:
      UserError: an array of the checkpoint's document is missing or has another shape.
    """
    arrays = {}
    for leaf, text in meta["fingerprints"].get(name, {}).items():
        if leaves is not None and leaf not in leaves:
            continue
        label = f"checkpoint {str(path)!r}: array {name}/{leaf}"
        base = {
            "driver": "ocdbt",
            "base": f"file://{path / name}/",
            "path": leaf.replace("/", ".") + "/",
        }
        try:
            store = ts.open({"driver": "zarr3", "kvstore": base}, open=True, read=True).result()
        except Exception as error:
            raise unreadable(label, error, mend) from None
        units = tuple(meta["units"].get(name, {}).get(leaf, (0,) * store.ndim))
        sizes = iter(store.shape)
        shape = tuple(next(sizes) * next(sizes) if unit > 1 else next(sizes) for unit in units)
        if stored_shape(shape, units) != tuple(store.shape):
            raise UserError(f"{label} has the wrong shape {tuple(store.shape)}; {mend}")
        reader = _reader(store, shape, units)
        arrays[leaf] = StoredArray(label, shape, store.dtype.numpy_dtype, units, text, mend, reader)
    return arrays


def _reader(store: Any, shape: tuple[int, ...], units: Units) -> Callable[[Index], np.ndarray]:
    def read(index: Index) -> np.ndarray:
        stored: list[Any] = []
        kept = []
        for size, unit, own in zip(shape, units, index, strict=True):
            pieces = _pieces(size, unit, own)
            stored += [*pieces, slice(None)] if unit > 1 else pieces or [slice(None)]
            kept.append(len(np.arange(size)[own]))
        return np.asarray(store.oindex[tuple(stored)].read().result()).reshape(kept)

    return read


def _pieces(size: int, unit: int, own: Any) -> list[Any]:
    """The pieces of one axis that an index keeps, as one slice or array; [] for an axis of one
    piece.
    """
    entries = np.arange(size)[own]
    if not unit:
        if len(entries) != size:
            raise ValueError(f"index {own} cuts an axis of {size} that is stored whole")
        return []
    pieces = entries[::unit] // unit
    if not np.array_equal(entries, (pieces[:, None] * unit + np.arange(unit)).ravel()):
        raise ValueError(f"index {own} cuts through pieces of {unit}")
    first = int(pieces[0])
    if np.array_equal(pieces, np.arange(first, first + len(pieces))):
        return [slice(first, first + len(pieces))]
    return [pieces]
