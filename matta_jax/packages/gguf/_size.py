"""The bytes of a GGUF file, counted without writing it."""

import functools
from collections.abc import Mapping
from typing import Any

from matta_jax.models import Architecture
from matta_jax.packages.gguf._fields import fields_of
from matta_jax.packages.gguf._kinds import kind_of
from matta_jax.packages.gguf._tensors import gguf_shapes
from matta_jax.packages.gguf._types import num_bytes, type_of_tensor
from matta_jax.packages.gguf._vocabulary import vocabulary_fields
from matta_jax.packages.gguf._write import general_fields

_ALIGNMENT = 32
# Magic number, version, and how many tensors and fields there are.
_HEADER = 4 + 4 + 8 + 8
# Of a text or a list, before it.
_LENGTH = 8
_TYPE = 4


def file_bytes(architecture: Architecture, type_name: str, tokenizer: str) -> int:
    """Of the file that `write_gguf` writes.

    Args:
      architecture: of the model.
      type_name: of the matrices.
      tokenizer: as `data.tokenizer`.

    Raises:
      UserError: llama.cpp has no form for it.
    """
    kind = kind_of(architecture)
    # The writer's own field is the first.
    fields = {"general.architecture": kind.name, **general_fields(type_name)}
    fields |= fields_of(kind, architecture)
    head = _HEADER + _fields_bytes(fields)
    head += _vocabulary_bytes(tokenizer, architecture.vocab_size)

    data = 0
    for name, shape in gguf_shapes(kind, architecture).items():
        # Name, number of sizes, sizes, type, offset.
        head += _LENGTH + len(name.encode()) + 4 + 8 * len(shape) + _TYPE + 8
        data += _aligned(num_bytes(shape, type_of_tensor(name, shape, type_name)))
    return _aligned(head) + data


@functools.lru_cache(maxsize=8)
def _vocabulary_bytes(tokenizer: str, vocab_size: int) -> int:
    return _fields_bytes(vocabulary_fields(tokenizer, vocab_size))


def _fields_bytes(fields: Mapping[str, Any]) -> int:
    names = sum(_LENGTH + len(name.encode()) + _TYPE for name in fields)
    return names + sum(_value_bytes(value) for value in fields.values())


def _value_bytes(value: Any) -> int:
    """Of a value as `_add_field` writes it: a flag is a byte, a number four."""
    if isinstance(value, bool):
        return 1
    if isinstance(value, int | float):
        return 4
    if isinstance(value, str):
        return _LENGTH + len(value.encode())
    return _TYPE + _LENGTH + sum(_value_bytes(item) for item in value)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
