"""A GGUF file, opened: what it says, and its tensors, dequantised by the gguf package."""

import functools
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages._safetensors import one_line

MEND = "name a GGUF file of a GPT-2, Llama, Qwen 2.5 or Qwen 3, or fetch it again"
# Whose zeros have no sign to keep; the blocks of all others may give 0 either sign.
_PLAIN_TYPES = ("F32", "F16", "BF16", "F64")


def require_gguf() -> Any:
    """Imports the package. Raises UserError when the extra is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf: pip install 'matta_jax[gguf]'") from None
    return gguf


@functools.cache
def _reader_class() -> Any:
    """The package's reader, which stops where a file ends: by itself it takes what is not there for
    nothing, and lists as many numbers as a field says that it has, until the memory is full.
    """
    gguf = require_gguf()

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined]  # Of what may be absent.
        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **named: Any) -> Any:
            values = super()._get(offset, dtype, count, *args, **named)
            if len(values) != int(count):
                raise ValueError("it ends before what it says it holds")
            return values

    return Reader


class GGUFFile:
    """An open file: what it says, and its tensors.

    Attributes:
      fields: by name.
      tensors: by name.
    """

    def __init__(self, file: storage.Path, mend: str = MEND):
        gguf = require_gguf()
        if not file.is_file():
            raise UserError(f"gguf={str(file)!r} is missing; {mend}")
        try:
            reader = _reader_class()(storage.local_copy(file))
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # The package raises many kinds for damaged files.
            raise UserError(f"gguf={str(file)!r} is damaged ({one_line(error)}); {mend}") from None
        self._gguf, self._file = gguf, file

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, its rows first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        tensor = self.tensors[name]
        try:
            values = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"gguf={str(self._file)!r}: {name} is quantised in a way that the gguf package "
                f"cannot undo ({one_line(error)}); name a file of another type, such as Q8_0"
            ) from None
        values = np.asarray(values, np.float32).reshape(self.shape(name))
        return values if tensor.tensor_type.name in _PLAIN_TYPES else unsigned_zeros(values)


def unsigned_zeros(values: np.ndarray) -> np.ndarray:
    """The values with 0 in place of -0, which the scale of a block of zeros may make."""
    return values + np.float32(0)
