"""Tensors in safetensors files: those of Hugging Face folders, in one file or several, and ours."""

import abc
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError

_FLOATS = ("F64", "F32", "F16", "BF16")
_SINGLE = "model.safetensors"
_SHARD = "model-{:05}-of-{:05}.safetensors"
_INDEX = "model.safetensors.index.json"


def require_safetensors() -> Any:
    """Imports the library. Raises UserError when the extra is not installed."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise UserError(
            "format='hf' and 'safetensors' need the package safetensors: pip install "
            "'matta_jax[hf]'"
        ) from None
    return safetensors


def save_tensors(
    folder: storage.Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    sizes: Mapping[str, int],
    shard_bytes: int,
) -> None:
    """Writes the tensors of a folder that is still being built: into one file, or into several with
    an index where they are too large for it. No more than a file of them is in memory at once.

    Args:
      folder: of the model.
      tensors: by name.
      sizes: bytes of each, in the order in which they come.
      shard_bytes: of a file; a larger tensor has one by itself.
    """
    shards = _shards_of(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    coming = iter(tensors)
    for i, names in enumerate(shards, 1):
        file_name = _SINGLE if len(shards) == 1 else _SHARD.format(i, len(shards))
        # A tensor that comes out of its turn would be in another file than the index says.
        shard = {}
        for expected in names:
            name, tensor = next(coming)
            assert name == expected, f"{name} came in place of {expected}"
            shard[name] = np.ascontiguousarray(tensor)
        require_safetensors().numpy.save_file(shard, folder / file_name, metadata={"format": "pt"})
        # The library's own mode is for its owner alone.
        storage.share_file(folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        storage.replace_text(folder / _INDEX, storage.json_text(index, indent=2) + "\n")


def _shards_of(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """The names of each file's tensors, in their order."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def one_line(error: Exception) -> str:
    """What a library says of a damaged file, in a line."""
    return " ".join(str(error).split())[:160]


class ForeignTensors(abc.ABC):
    """The tensors of a model from elsewhere, by name, read when they are asked for.

    Attributes:
      files: by name without the prefix: what tells where a tensor is.
      folder: where they are, as errors name it.
      mend: what a user can do about damage.
    """

    def __init__(self, folder: storage.Path, prefix: str, mend: str):
        self.folder, self.mend, self._prefix = folder, mend, prefix
        self.files: dict[str, Any] = {}

    @abc.abstractmethod
    def about(self, name: str) -> tuple[tuple[int, ...], str]:
        """The shape of a tensor, and its type as safetensors name it."""

    @abc.abstractmethod
    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a tensor."""

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises UserError unless there is a tensor of floats of this name and shape."""
        if name not in self.files:
            raise UserError(f"{str(self.folder)!r}: tensor {name} is missing; {self.mend}")
        stored_shape, dtype = self.about(name)
        if stored_shape != shape:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} has shape {stored_shape}, but config.json "
                f"says {shape}; they are of different models"
            )
        if dtype not in _FLOATS:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} is of type {dtype}, not a float; {self.mend}"
            )

    def check_names(self, names: Collection[str], ignored: re.Pattern[str], title: str) -> None:
        """Raises UserError where there are tensors of other names, and not of those ignored."""
        unknown = sorted(n for n in self.files if n not in names and not ignored.fullmatch(n))
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(
                f"{str(self.folder)!r}: tensor {unknown[0]}{more} is none of {title}'s: it is of "
                f"another model, or holds an adapter to be merged first; {self.mend}"
            )


class FolderTensors(ForeignTensors):
    """The tensors of a Hugging Face folder, in one file or several, with or without a prefix."""

    def __init__(self, folder: storage.Path, prefix: str, mend: str):
        # Of each tensor the file that holds it, and its name there.
        super().__init__(folder, prefix, mend)
        for file_name, indexed_names in self._names_by_file().items():
            file = self._open(folder / file_name)
            stored_names = list(file.keys())
            lacking = sorted(set(indexed_names) - set(stored_names))
            if lacking:
                raise UserError(
                    f"{str(folder)!r}: {_INDEX} says that {file_name} holds {lacking[0]}, and it "
                    f"does not; {mend}"
                )
            for stored_name in stored_names:
                self._add(stored_name.removeprefix(prefix), file, stored_name)

    def _add(self, name: str, file: Any, stored_name: str) -> None:
        """Takes a tensor in. Raises UserError where there is one of its name with other values."""
        first = self.files.setdefault(name, (file, stored_name))
        if first == (file, stored_name):
            return
        try:
            are_equal = np.array_equal(first[0].get_tensor(first[1]), file.get_tensor(stored_name))
        except Exception as error:  # As in `open_tensors`.
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} is damaged ({one_line(error)}); {self.mend}"
            ) from None
        if not are_equal:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} is stored twice, with other values "
                f"({first[1]} and {stored_name}); {self.mend}"
            )

    def _names_by_file(self) -> dict[str, list[str]]:
        """The files of the folder, with the tensors that its index tells of each."""
        index = self.folder / _INDEX
        # As transformers: the single file goes before an index, which is of an older model then.
        if (self.folder / _SINGLE).is_file() or not index.is_file():
            return {_SINGLE: []}
        names_by_file: dict[str, list[str]] = {}
        try:
            for name, file_name in storage.read_json(index)["weight_map"].items():
                # An index comes from outside: a name with a folder would read files elsewhere.
                if storage.path(file_name).name != file_name:
                    raise ValueError("weight_map must name files of the folder")
                names_by_file.setdefault(file_name, []).append(name)
            if not names_by_file:
                raise ValueError("weight_map must name files of the folder")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{str(index)!r} cannot be read ({error}); {self.mend}") from None
        return dict(sorted(names_by_file.items()))

    def _open(self, path: storage.Path) -> Any:
        if not path.is_file():
            has_pickle = (self.folder / "pytorch_model.bin").exists()
            hint = "; convert pytorch_model.bin first" if has_pickle else ""
            raise UserError(f"{str(path)!r} is missing; {self.mend}{hint}")
        try:
            return require_safetensors().safe_open(storage.local_copy(path), "np")
        except UserError:
            raise
        except Exception as error:  # As in `open_tensors`.
            raise UserError(f"{str(path)!r} is damaged ({one_line(error)}); {self.mend}") from None

    def about(self, name: str) -> tuple[tuple[int, ...], str]:
        file, stored_name = self.files[name]
        stored = file.get_slice(stored_name)
        return tuple(stored.get_shape()), stored.get_dtype()

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored_name = self.files[name.removeprefix(self._prefix)]
        return np.asarray(file.get_tensor(stored_name))

    def part(self, name: str, index: tuple[Any, ...]) -> np.ndarray:
        """Reads the part of an index."""
        file, stored_name = self.files[name]
        return np.asarray(file.get_slice(stored_name)[index])


def open_tensors(
    folder: storage.Path, shapes: Mapping[str, tuple[int, ...]], mend: str
) -> dict[str, Callable[[tuple[Any, ...]], np.ndarray]]:
    """For each tensor of our own names a function that reads the part of an index.

    Raises:
      UserError: files are missing or damaged, or hold other tensors.
    """
    try:
        tensors = FolderTensors(folder, "", mend)
        stored_shapes = {name: tensors.about(name)[0] for name in tensors.files}
    except UserError as error:
        raise UserError(f"model={str(folder)!r} is damaged: {error}") from None
    if stored_shapes != dict(shapes):
        raise UserError(f"model={str(folder)!r} is damaged: its files hold other tensors; {mend}")
    return {name: functools.partial(tensors.part, name) for name in shapes}
