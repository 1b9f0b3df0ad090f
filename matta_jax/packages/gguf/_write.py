"""Writes a model as a GGUF file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.models import Architecture, logical_axes
from matta_jax.nesting import flatten
from matta_jax.packages._packaging import K_QUANTS
from matta_jax.packages._weights import Weight
from matta_jax.packages.gguf._fields import fields_of
from matta_jax.packages.gguf._file import GGUFFile, require_gguf
from matta_jax.packages.gguf._kinds import kind_of
from matta_jax.packages.gguf._quantiser import quantise_file, quantiser, types_note
from matta_jax.packages.gguf._read import FILE_NAME
from matta_jax.packages.gguf._tensors import gguf_shapes, to_gguf
from matta_jax.packages.gguf._types import (
    check_rows,
    encoded,
    file_type,
    is_blocked,
    num_bytes,
    type_of_tensor,
)
from matta_jax.packages.gguf._vocabulary import texts_note, vocabulary_fields

_QUANTIZATION_VERSION = 2


def check_gguf(architecture: Architecture, type_name: str) -> None:
    """Raises UserError where a model cannot be written as a file of a type, or the gguf package is
    not installed, or of K-quants llama.cpp's quantiser.
    """
    require_gguf()
    if type_name in K_QUANTS:
        quantiser(type_name)
    check_rows(architecture, type_name)


def write_gguf(
    folder: storage.Path,
    weights: Mapping[str, Weight],
    architecture: Architecture,
    type_name: str,
    tokenizer: str,
) -> None:
    """Writes a model's weights, and all that an engine needs beside them, into a folder that is
    there; no more than a tensor of it is in memory.

    Args:
      folder: of the model.
      weights: by path, rounded to what the type gives back (`rounded_params`); for `K_QUANTS` as
        they are.
      architecture: of the model.
      type_name: of the matrices: of `QUANTIZATIONS` or `K_QUANTS`.
      tokenizer: as `data.tokenizer`.

    Raises:
      UserError: llama.cpp has no form for it.
    """
    check_gguf(architecture, type_name)
    if type_name in K_QUANTS:
        with storage.scratch_folder() as scratch:
            _write_file(scratch / FILE_NAME, weights, architecture, "f32", tokenizer)
            quantise_file(scratch / FILE_NAME, folder / FILE_NAME, type_name)
    else:
        _write_file(folder / FILE_NAME, weights, architecture, type_name, tokenizer)
    storage.share_file(folder / FILE_NAME)


def _write_file(
    file: storage.Path,
    weights: Mapping[str, Weight],
    architecture: Architecture,
    type_name: str,
    tokenizer: str,
) -> None:
    kind = kind_of(architecture)
    writer = require_gguf().GGUFWriter(file, kind.name)
    fields = general_fields(type_name)
    fields |= fields_of(kind, architecture)
    fields |= vocabulary_fields(tokenizer, architecture.vocab_size)
    for name, value in fields.items():
        _add_field(writer, name, value)

    shapes = gguf_shapes(kind, architecture)
    for name, shape in shapes.items():
        _add_tensor(writer, name, shape, type_of_tensor(name, shape, type_name))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        tensors = to_gguf(kind, weights, flatten(logical_axes(architecture)), architecture)
        for expected, (name, tensor) in zip(shapes, tensors, strict=True):
            # A tensor that comes out of its turn would stand under another's name.
            assert name == expected, f"{name} came in place of {expected}"
            values = np.ascontiguousarray(tensor, np.float32)
            writer.write_tensor_data(encoded(values, type_of_tensor(name, values.shape, type_name)))
    finally:
        writer.close()


def file_notes(folder: storage.Path) -> list[str]:
    """What a file that was written cannot do, and what its types have become, a line each."""
    file = GGUFFile(folder / FILE_NAME)
    return [note for note in (texts_note(file), types_note(file)) if note is not None]


def general_fields(type_name: str) -> dict[str, Any]:
    """The fields that all files of a type have."""
    fields = {"general.type": "model", "general.file_type": file_type(type_name)}
    if is_blocked(type_name):
        fields["general.quantization_version"] = _QUANTIZATION_VERSION
    return fields


def _add_tensor(writer: Any, name: str, shape: tuple[int, ...], tensor_type: str) -> None:
    quantisation = require_gguf().GGMLQuantizationType[tensor_type.upper()]
    # The type of numbers has no effect beside that of blocks.
    size = num_bytes(shape, tensor_type)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, quantisation)


def _add_field(writer: Any, name: str, value: Any) -> None:
    """Adds a field of the type that llama.cpp expects of a value in Python."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
