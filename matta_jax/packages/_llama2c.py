"""Models of llama2.c: one file of a header and float32 weights.

Their queries and keys have the pairs that turn together side by side, where Hugging Face's have
them half a head apart.
"""

import struct
from collections.abc import Mapping

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.packages.hf import Foreign, layout_of_type

_MEND = "name a .bin file as export.py of llama2.c writes it, of version 0 or 1"
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
_MAGIC = 0x616B3432  # "ak42", of versions from 1 on.
_HEADER_1 = 256
_MOST = 2**24


def open_llama2c(file: storage.Path) -> Foreign:
    """Opens a model of llama2.c. Raises UserError when the file is missing, damaged or of a version
    that is not known.
    """
    if not file.is_file():
        raise UserError(f"llama2c={str(file)!r} is missing; {_MEND}")
    sizes, is_tied, start, version = _read_header(file)
    config = {
        "model_type": "llama",
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["hidden_dim"],
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "vocab_size": sizes["vocab_size"],
        "max_position_embeddings": sizes["max_seq_len"],
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": is_tied,
    }
    shapes = _shapes(sizes, is_tied=is_tied, version=version)
    num_bytes = start + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if storage.num_bytes(file) != num_bytes:
        raise UserError(
            f"llama2c={str(file)!r} has {storage.num_bytes(file):,} bytes, but its header says "
            f"{num_bytes:,}; {_MEND}"
        )
    layout = layout_of_type("llama")
    return Foreign(
        layout, config, file, lambda: _Tensors(file, layout.prefix, sizes, shapes, start), _MEND
    )


def _read_header(file: storage.Path) -> tuple[dict[str, int], bool, int, int]:
    """The sizes, whether the head is tied, where the weights begin, and the version."""
    header = bytes(np.fromfile(storage.local_copy(file), np.uint8, _HEADER_1))
    if len(header) < 4 * (len(_FIELDS) + 1):
        raise UserError(f"llama2c={str(file)!r} is too short for a header; {_MEND}")

    start, version = 4 * len(_FIELDS), 0
    numbers = struct.unpack_from(f"<{len(_FIELDS)}i", header)
    if struct.unpack_from("<I", header)[0] == _MAGIC:
        version = struct.unpack_from("<i", header, 4)[0]
        if version != 1:
            raise UserError(f"llama2c={str(file)!r} is of version {version}; {_MEND}")
        numbers = struct.unpack_from(f"<{len(_FIELDS)}i", header, 8)
        start, is_tied = _HEADER_1, bool(header[8 + 4 * len(_FIELDS)])
    else:
        # Of the first version a negative vocabulary says that there is a head.
        is_tied = numbers[5] > 0

    sizes = dict(zip(_FIELDS, (abs(number) for number in numbers), strict=True))
    for name, size in sizes.items():
        if not 1 <= size <= _MOST:
            raise UserError(f"llama2c={str(file)!r} says {name}={size}; {_MEND}")
    if sizes["dim"] % (2 * sizes["n_heads"]):
        raise UserError(
            f"llama2c={str(file)!r}: dim={sizes['dim']} is not of {sizes['n_heads']} heads of an "
            f"even width; {_MEND}"
        )
    return sizes, is_tied, start, version


def _shapes(sizes: Mapping[str, int], *, is_tied: bool, version: int) -> dict[str, tuple[int, ...]]:
    """The arrays of a file in their order, with the layers of a weight in one."""
    dim, hidden, layers = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"]
    head_dim = dim // sizes["n_heads"]
    keys = head_dim * sizes["n_kv_heads"]
    table = (sizes["vocab_size"], dim)
    attention = {
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, keys, dim),
        "self_attn.v_proj": (layers, keys, dim),
        "self_attn.o_proj": (layers, dim, dim),
    }
    mlp = {
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
    }
    before, after = "input_layernorm", "post_attention_layernorm"
    norms = {before: (layers, dim), after: (layers, dim)}
    if version == 1:
        shapes = {**norms, "norm": (dim,), "embed_tokens": table, **attention, **mlp}
        return shapes if is_tied else {**shapes, "lm_head": table}

    shapes = {"embed_tokens": table, before: norms[before], **attention, after: norms[after], **mlp}
    # Tables of cosines and sines, which follow from the sizes.
    turns = (sizes["max_seq_len"], head_dim // 2)
    shapes |= {"norm": (dim,), "cos": turns, "sin": turns}
    return shapes if is_tied else {**shapes, "lm_head": table}


class _Tensors(ForeignTensors):
    """The tensors of a file, by Hugging Face's names."""

    def __init__(
        self,
        file: storage.Path,
        prefix: str,
        sizes: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        start: int,
    ):
        super().__init__(file, prefix, _MEND)
        self._sizes = sizes
        self._numbers = np.memmap(storage.local_copy(file), np.dtype("<f4"), "r", offset=start)
        offset = 0
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            self._add(name, shape, offset)
            offset += count

    def _add(self, name: str, shape: tuple[int, ...], offset: int) -> None:
        if name in ("cos", "sin"):
            return
        if name in ("norm", "embed_tokens", "lm_head"):
            self.files[f"{name}.weight"] = (name, shape, offset)
            return
        size = int(np.prod(shape[1:]))
        for layer in range(shape[0]):
            full_name = f"layers.{layer}.{name}.weight"
            self.files[full_name] = (name, shape[1:], offset + layer * size)

    def about(self, name: str) -> tuple[tuple[int, ...], str]:
        return self.files[name][1], "F32"

    def __getitem__(self, name: str) -> np.ndarray:
        kind, shape, offset = self.files[name.removeprefix(self._prefix)]
        array = np.array(self._numbers[offset : offset + int(np.prod(shape))]).reshape(shape)
        heads = {"self_attn.q_proj": "n_heads", "self_attn.k_proj": "n_kv_heads"}.get(kind)
        return array if heads is None else halves_apart(array, self._sizes[heads])


def halves_apart(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of queries or keys whose pairs stand side by side, with the second of each half a head
    after the first.
    """
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
