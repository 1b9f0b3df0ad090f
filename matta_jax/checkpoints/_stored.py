"""Arrays that stay on disk until a part of them is asked for."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax.sharding import NamedSharding

from matta_jax import storage
from matta_jax.checkpoints._pieces import Units, fingerprint, grid_of, stored_shape, take
from matta_jax.errors import UserError
from matta_jax.sharding import place

# For each axis a slice, or an array of the entries to keep.
Index = tuple[Any, ...]


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
        pieces: list[Any] = []
        for size, unit, axis_index in zip(self.shape, self.units, index, strict=True):
            pieces += _pieces(size, unit, axis_index)
        return take(self.fingerprint, grid_of(self.shape, self.units), tuple(pieces))

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part. Raises UserError when it is damaged."""
        expected = self.part(index)
        try:
            part = self._read_by_entries(index)
        except Exception as error:  # Readers raise many kinds for damaged files.
            raise unreadable(self.name, error, self.mend) from None
        if fingerprint(part, self.units) != expected:
            raise UserError(f"{self.name} differs from its fingerprint; {self.mend}")
        return part

    def _read_by_entries(self, index: Index) -> np.ndarray:
        """Reads a part; where the first axis is cut into single entries, such as layers, one by
        one, so that a reader's own copies stay small.
        """
        if self.units[:1] != (1,):
            return self.read(index)
        entries = np.arange(self.shape[0])[index[0]]
        if len(entries) <= 1:
            return self.read(index)

        part = np.empty(_shape_of_part(self.shape, index), self.dtype)
        for row, entry in zip(part, entries, strict=True):
            row[...] = self.read((slice(entry, entry + 1), *index[1:]))[0]
        return part

    def whole(self) -> np.ndarray:
        """Reads all of it."""
        return self[(slice(None),) * len(self.shape)]

    def verify(self) -> None:
        """Reads all of it for its errors alone: entry by entry where the first axis is cut so."""
        if self.units[:1] != (1,):
            self.whole()
            return
        for i in range(self.shape[0]):
            self.entry(i)

    def entry(self, i: int) -> np.ndarray:
        """Reads one entry of the first axis, which stays, and no others."""
        return self[(slice(i, i + 1), *(slice(None),) * (len(self.shape) - 1))]

    def onto(self, sharding: NamedSharding, dtype: Any = None) -> jax.Array:
        """Reads all of it onto devices, each its own part; where the first axis is cut into single
        entries, such as layers, a host has but one of them at a time.

        Args:
          sharding: where it goes; an axis that is cut into single entries is on every device.
          dtype: to which it is cast; None: its own.
        """
        dtype = dtype or self.dtype
        if self.units[:1] != (1,):
            return place(self.whole().astype(dtype, copy=False), sharding)

        zeros = functools.partial(jnp.zeros, self.shape, dtype)
        array = jax.jit(zeros, out_shardings=sharding)()
        put = jax.jit(_put_entry, donate_argnums=0, out_shardings=sharding)
        for i in range(self.shape[0]):
            array = put(array, place(self.entry(i).astype(dtype, copy=False), sharding), i)
        return array


def _put_entry(array: jax.Array, entry: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, entry, i, 0)


def _shape_of_part(shape: tuple[int, ...], index: Index) -> list[int]:
    return [len(np.arange(size)[axis_index]) for size, axis_index in zip(shape, index, strict=True)]


def unreadable(name: str, error: Exception, mend: str) -> UserError:
    """The one line about an array that a library could not read."""
    return UserError(f"{name} cannot be read ({' '.join(str(error).split())[:160]}); {mend}")


def stored_arrays(
    path: storage.Path,
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
    unit_lists = meta["units"].get(name, {})
    for leaf, prints in meta["fingerprints"].get(name, {}).items():
        if leaves is not None and leaf not in leaves:
            continue
        label = f"checkpoint {str(path)!r}: array {name}/{leaf}"
        try:
            store = _open_store(path / name, leaf)
        except Exception as error:
            raise unreadable(label, error, mend) from None

        units = tuple(unit_lists.get(leaf, (0,) * store.ndim))
        shape = _unstored_shape(store.shape, units)
        if stored_shape(shape, units) != tuple(store.shape):
            raise UserError(f"{label} has the wrong shape {tuple(store.shape)}; {mend}")
        arrays[leaf] = StoredArray(
            name=label,
            shape=shape,
            dtype=store.dtype.numpy_dtype,
            units=units,
            fingerprint=prints,
            mend=mend,
            read=_reader(store, shape, units),
        )
    return arrays


def _open_store(folder: storage.Path, leaf: str) -> Any:
    """Opens an array where Orbax has put it."""
    arrays = {
        "driver": "ocdbt",
        "base": storage.kvstore(folder),
        "path": leaf.replace("/", ".") + "/",
    }
    return ts.open({"driver": "zarr3", "kvstore": arrays}, open=True, read=True).result()


def _unstored_shape(stored: tuple[int, ...], units: Units) -> tuple[int, ...]:
    """The shape of an array that is stored in another one."""
    sizes = iter(stored)
    shape = []
    for unit in units:
        # Units of more axes than there are make another shape, which the caller refuses.
        size = next(sizes, 1)
        if unit > 1:
            size *= next(sizes, 1)
        shape.append(size)
    return tuple(shape)


def _reader(store: Any, shape: tuple[int, ...], units: Units) -> Callable[[Index], np.ndarray]:
    def read(index: Index) -> np.ndarray:
        stored_index: list[Any] = []
        for size, unit, axis_index in zip(shape, units, index, strict=True):
            # An axis of one piece is read as it is; all that is in a piece comes with it.
            pieces = _pieces(size, unit, axis_index) or [slice(None)]
            stored_index += pieces
            if unit > 1:
                stored_index.append(slice(None))

        part = store.oindex[tuple(stored_index)].read().result()
        return np.asarray(part).reshape(_shape_of_part(shape, index))

    return read


def _pieces(size: int, unit: int, axis_index: Any) -> list[Any]:
    """The pieces of one axis that an index keeps, as one slice or array; [] for an axis of one
    piece.
    """
    entries = np.arange(size)[axis_index]
    if not unit:
        if len(entries) != size:
            raise ValueError(f"index {axis_index} cuts an axis of {size} that is stored whole")
        return []

    pieces = entries[::unit] // unit
    entries_of_pieces = pieces[:, None] * unit + np.arange(unit)
    if not np.array_equal(entries, entries_of_pieces.ravel()):
        raise ValueError(f"index {axis_index} cuts through pieces of {unit}")

    # A slice of the file is read faster than a list of entries.
    first = int(pieces[0])
    if np.array_equal(pieces, np.arange(first, first + len(pieces))):
        return [slice(first, first + len(pieces))]
    return [pieces]
