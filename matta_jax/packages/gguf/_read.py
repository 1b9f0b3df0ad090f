"""GGUF files become models: those of llama.cpp's users, and those that were written here.

A file of the kinds `llama` and `deci` has the pairs of queries and keys that turn together side by
side, where Hugging Face's have them half a head apart; of all others they are as there.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError, shorten
from matta_jax.models import Architecture, logical_axes
from matta_jax.nesting import flatten
from matta_jax.packages.gguf._fields import fields_of, gpt2_config, llama_config
from matta_jax.packages.gguf._file import MEND, GGUFFile
from matta_jax.packages.gguf._kinds import KIND_NAMES, Kind, kind_named, kind_of
from matta_jax.packages.gguf._tensors import (
    FREQUENCIES,
    GGUFTensors,
    Source,
    gguf_shapes,
    rope_factors,
)
from matta_jax.packages.hf import Foreign, Reader, tensor_readers

FILE_NAME = "model.gguf"


def open_gguf(file: storage.Path) -> Foreign:
    """Opens a GGUF file. Raises UserError when it is missing, damaged, or of an architecture that
    is not known.
    """
    gguf_file = GGUFFile(file)
    name = gguf_file.fields.get("general.architecture")
    if name not in KIND_NAMES:
        raise UserError(
            f"gguf={str(file)!r}: general.architecture={shorten(name)} is not supported, only "
            f"{', '.join(KIND_NAMES)}; {MEND}"
        )
    kind = kind_named(name, has_biases="blk.0.attn_q.bias" in gguf_file.tensors)
    try:
        config = gpt2_config(gguf_file, kind) if name == "gpt2" else llama_config(gguf_file, kind)
    except KeyError as error:
        raise UserError(f"gguf={str(file)!r} has no {error}; {MEND}") from None
    heads = _heads(gguf_file.fields, kind, config)
    tensors = functools.partial(GGUFTensors, gguf_file, file, kind, heads, MEND)
    return Foreign(kind.layout, config, file, tensors, MEND)


def _heads(
    fields: Mapping[str, Any], kind: Kind, config: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The numbers of queries and keys in each layer, and the width of a head."""
    if kind.name == "gpt2":
        return (), (), config["n_embd"] // max(config["n_head"], 1)

    def by_layer(name: str, default: Any) -> tuple[int, ...]:
        counts = fields.get(f"{kind.name}.{name}", default)
        layers = config["num_hidden_layers"]
        return tuple(counts) if isinstance(counts, list) else (counts,) * layers

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // max(heads, 1))
    queries = by_layer("attention.head_count", heads)
    return queries, by_layer("attention.head_count_kv", heads), head_dim


def architecture_heads(
    kind: Kind, architecture: Architecture
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """As GGUFTensors takes the heads of a model of ours."""
    if kind.name == "gpt2":
        return (), (), architecture.head_dim
    groups, queries = architecture.along("kv_heads"), architecture.fixed["queries"]
    return tuple(count * queries for count in groups), groups, architecture.head_dim


def model_readers(
    source: Source, file: storage.Path, architecture: Architecture, mend: str
) -> dict[str, Reader]:
    """For each of our weights, by path, a function that reads the part of an index. Raises
    UserError where tensors are missing, or of another shape.
    """
    kind = kind_of(architecture)
    tensors = GGUFTensors(source, file, kind, architecture_heads(kind, architecture), mend)
    names = flatten(logical_axes(architecture))
    return tensor_readers(kind.layout, tensors, architecture, names)


def open_written(folder: storage.Path, architecture: Architecture, mend: str) -> dict[str, Reader]:
    """As `model_readers`, of a file that was written here. Raises UserError when it is damaged, or
    says anything else of the model than the architecture.
    """
    file = folder / FILE_NAME
    kind = kind_of(architecture)
    try:
        gguf_file = GGUFFile(file, mend)
        _check_fields(gguf_file, kind, architecture, mend)
        return model_readers(gguf_file, file, architecture, mend)
    except UserError as error:
        raise UserError(f"model={str(folder)!r} is damaged: {error}") from None


def _check_fields(file: GGUFFile, kind: Kind, architecture: Architecture, mend: str) -> None:
    """Raises UserError where a file tells an engine of another model than ours."""
    expected = {"general.architecture": kind.name} | fields_of(kind, architecture)
    for name, value in expected.items():
        stored = file.fields.get(name)
        # Numbers of a file are float32.
        is_alike = stored == value
        if isinstance(value, float) and isinstance(stored, float):
            is_alike = abs(stored - value) <= 1e-6 * abs(value)
        if not is_alike:
            raise UserError(
                f"{FILE_NAME} says {name}={shorten(stored)}, and its manifest {shorten(value)}; "
                f"{mend}"
            )
    shapes = {name: file.shape(name) for name in file.tensors}
    if shapes != gguf_shapes(kind, architecture):
        raise UserError(f"{FILE_NAME} holds other tensors; {mend}")
    factors = rope_factors(architecture)
    if factors is not None and not np.allclose(file.read(FREQUENCIES), factors, rtol=1e-5):
        raise UserError(f"{FILE_NAME} has other frequencies than its manifest; {mend}")
