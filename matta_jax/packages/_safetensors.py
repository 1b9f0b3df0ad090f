"""Tensors in safetensors files: those of Hugging Face folders, in one file or several, and ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError

_FLOATS = ("F64", "F32", "F16", "BF16")
_SINGLE = "model.safetensors"
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


def save_tensors(folder: storage.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the one file of a folder that is still being built."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    file = folder / _SINGLE
    require_safetensors().numpy.save_file(contiguous, file, metadata={"format": "pt"})
    # The library's own mode is for its owner alone.
    storage.share_file(file)


def one_line(error: Exception) -> str:
    """What a library says of a damaged file, in a line."""
    return " ".join(str(error).split())[:160]


def open_tensors(
    folder: storage.Path, shapes: Mapping[str, tuple[int, ...]], mend: str
) -> dict[str, Any]:
    """For each tensor of our own names a function that reads the part of an index.

    Raises:
      UserError: the file is missing or damaged, or holds other tensors.
    """
    try:
        file = require_safetensors().safe_open(folder / _SINGLE, "np")
        stored_shapes = {
            path: tuple(file.get_slice(path).get_shape()) for path in list(file.keys())
        }
    except UserError:
        raise
    except Exception as error:  # The library raises its own and several others for damaged files.
        raise UserError(f"model={str(folder)!r} is damaged ({one_line(error)}); {mend}") from None
    if stored_shapes != dict(shapes):
        raise UserError(f"model={str(folder)!r} is damaged: {_SINGLE} holds other tensors; {mend}")
    return {
        path: lambda index, path=path: np.asarray(file.get_slice(path)[index])
        for path in stored_shapes
    }


class FolderTensors:
    """The tensors of a Hugging Face folder, in one file or several, with or without a prefix."""

    def __init__(self, folder: storage.Path, prefix: str, mend: str):
        self.folder, self.mend = folder, mend
        # Our name of a tensor: the file that holds it, and its name there.
        self.files: dict[str, tuple[Any, str]] = {}
        for name in self._file_names():
            file = self._open(folder / name)
            for stored_name in list(file.keys()):
                self.files[stored_name.removeprefix(prefix)] = (file, stored_name)

    def _file_names(self) -> list[str]:
        index = self.folder / _INDEX
        if not index.is_file():
            return [_SINGLE]
        try:
            names = sorted(set(storage.read_json(index)["weight_map"].values()))
            # An index comes from outside: a name with a folder would read files elsewhere.
            if not names or any(storage.path(name).name != name for name in names):
                raise ValueError("weight_map must name files of the folder")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{str(index)!r} cannot be read ({error}); {self.mend}") from None
        return names

    def _open(self, path: storage.Path) -> Any:
        if not path.is_file():
            has_pickle = (self.folder / "pytorch_model.bin").exists()
            hint = "; convert pytorch_model.bin first" if has_pickle else ""
            raise UserError(f"{str(path)!r} is missing; {self.mend}{hint}")
        try:
            return require_safetensors().safe_open(path, "np")
        except UserError:
            raise
        except Exception as error:  # As in `open_tensors`.
            raise UserError(f"{str(path)!r} is damaged ({one_line(error)}); {self.mend}") from None

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored_name = self.files[name]
        return np.asarray(file.get_tensor(stored_name))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises UserError unless there is a tensor of floats of this name and shape."""
        if name not in self.files:
            raise UserError(f"{str(self.folder)!r}: tensor {name} is missing; {self.mend}")
        file, stored_name = self.files[name]
        about = file.get_slice(stored_name)
        stored_shape = tuple(about.get_shape())
        if stored_shape != shape:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} has shape {stored_shape}, but config.json "
                f"says {shape}; they are of different models"
            )
        if about.get_dtype() not in _FLOATS:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} is of type {about.get_dtype()}, not a "
                f"float; {self.mend}"
            )
