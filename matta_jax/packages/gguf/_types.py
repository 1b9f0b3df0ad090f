"""Types of numbers in GGUF files: which rows they fit, what they round weights to, their bytes."""

import math

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, logical_axes
from matta_jax.nesting import BLOCKS, Tree, flatten, unflatten
from matta_jax.packages._packaging import K_QUANTS
from matta_jax.packages._weights import in_memory
from matta_jax.packages.gguf._file import require_gguf, unsigned_zeros
from matta_jax.packages.gguf._kinds import kind_of
from matta_jax.packages.gguf._read import model_readers
from matta_jax.packages.gguf._tensors import POSITIONS, InMemory, gguf_shapes, to_gguf

# Numbers of a block, bytes of a block, and `general.file_type` as llama.cpp numbers it.
_TYPES = {
    "f32": (1, 4, 0),
    "f16": (1, 2, 1),
    "bf16": (1, 2, 32),
    "q8_0": (32, 34, 7),
    "q5_0": (32, 22, 8),
    "q4_0": (32, 18, 2),
}
# A block that is rounded again gives itself at once; the third time is for what is not foreseen.
_MOST_ROUNDS = 3


def is_blocked(type_name: str) -> bool:
    """Whether numbers share a scale with others of their row."""
    return _TYPES[type_name][0] > 1


def file_type(type_name: str) -> int:
    """`general.file_type` of a file whose matrices are of a type."""
    return _TYPES[type_name][2]


def num_bytes(shape: tuple[int, ...], tensor_type: str) -> int:
    """Of a tensor."""
    block, size, _ = _TYPES[tensor_type]
    return math.prod(shape) * size // block


def type_of_tensor(name: str, shape: tuple[int, ...], type_name: str) -> str:
    """The type of a tensor in a file whose matrices are of `type_name`."""
    # As llama.cpp's own converter: vectors and positions are added, and stay exact.
    return type_name if len(shape) > 1 and name != POSITIONS else "f32"


def num_parameters(architecture: Architecture) -> int:
    """Numbers in a file, what pads its layers among them."""
    shapes = gguf_shapes(kind_of(architecture), architecture)
    return sum(math.prod(shape) for shape in shapes.values())


def check_rows(architecture: Architecture, type_name: str) -> None:
    """Raises UserError, before anything is written, where blocks do not fit the rows of a model."""
    # Where their own blocks do not fit a row, K-quants give way to blocks of 32.
    block = 32 if type_name in K_QUANTS else _TYPES[type_name][0]
    for name, shape in gguf_shapes(kind_of(architecture), architecture).items():
        if type_of_tensor(name, shape, type_name) == "f32" or shape[-1] % block == 0:
            continue
        part = name.removesuffix(".weight").rpartition(".")[2]
        field = {"ffn_down": "d_ff", "attn_output": "heads x head_dim"}.get(part, "d_model")
        raise UserError(
            f"quantize={type_name!r}: {field}={shape[-1]} of {name} must be a multiple of {block}, "
            f"the numbers of a block; extract other sizes, or give --quantize=f16"
        )


def encoded(values: np.ndarray, type_name: str) -> np.ndarray:
    """A tensor [rows, row] as the bytes of a type, or as its numbers."""
    gguf = require_gguf()
    with np.errstate(over="ignore"):
        return gguf.quantize(values, gguf.GGMLQuantizationType[type_name.upper()])


def _decoded(data: np.ndarray, type_name: str) -> np.ndarray:
    gguf = require_gguf()
    values = gguf.dequantize(data, gguf.GGMLQuantizationType[type_name.upper()])
    return unsigned_zeros(values) if is_blocked(type_name) else values


def _rounded(name: str, values: np.ndarray, type_name: str) -> np.ndarray:
    """What a file gives back of a tensor, and writes again as the same bytes."""
    tensor_type = type_of_tensor(name, values.shape, type_name)
    if tensor_type == "f32":
        return values
    for _ in range(_MOST_ROUNDS):
        again = _decoded(encoded(values, tensor_type), tensor_type).reshape(values.shape)
        if not np.isfinite(again).all():
            raise UserError(
                f"quantize={type_name!r}: {name} holds numbers beyond those of {type_name}; give "
                "--quantize=bf16"
            )
        if again.tobytes() == values.tobytes():
            return values
        values = again
    raise UserError(
        f"quantize={type_name!r}: {name} does not come back as it was written; this is a defect, "
        "please report it"
    )


def rounded_params(params: Tree, architecture: Architecture, type_name: str) -> Tree:
    """The weights of a model as a file of a type gives them back; all of it is in memory.

    Raises:
      UserError: they are beyond the numbers of the type.
    """
    if type_name == "f32":
        return params
    kind, names = kind_of(architecture), flatten(logical_axes(architecture))
    tensors = {
        name: _rounded(name, np.asarray(tensor, np.float32), type_name)
        for name, tensor in to_gguf(kind, in_memory(params), names, architecture)
    }
    reads = model_readers(InMemory(tensors), storage.path("memory"), architecture, "")
    rounded = {}
    for path, leaf in flatten(params).items():
        part = reads[path]((slice(None),) * leaf.ndim)
        rounded[path] = part.astype(np.asarray(leaf).dtype, copy=False)
    return unflatten(rounded)


def weight_bytes(architecture: Architecture, type_name: str) -> int:
    """Bytes of a model's weights in a file of a type, without what pads its layers."""
    layout = kind_of(architecture).layout
    places = dict(layout.outer(architecture))
    for i in range(len(architecture.sub_model.runs)):
        for part, place in layout.layer(architecture).items():
            places[f"{BLOCKS}/{i}/{part}"] = place

    total = 0
    for path, leaf in flatten(abstract_params(architecture)).items():
        name = POSITIONS if path == "embed/positions" else path
        shape = tuple(len(dim) for dim in places[path].dims)
        total += num_bytes((leaf.size,), type_of_tensor(name, shape, type_name))
    return total
