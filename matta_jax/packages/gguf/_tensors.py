"""Tensors of GGUF files by Hugging Face's names, both ways."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from matta_jax import storage
from matta_jax.models import Architecture
from matta_jax.models.layers import Rotary
from matta_jax.nesting import Names
from matta_jax.packages._llama2c import halves_apart
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.packages._weights import Weight
from matta_jax.packages.gguf._kinds import Kind
from matta_jax.packages.hf import tensor_shapes, to_tensors

FREQUENCIES = "rope_freqs.weight"
POSITIONS = "position_embd.weight"
_GPT2 = "gpt2"
_FUSED = "attn_qkv.weight"
# llama.cpp's name of each of Hugging Face's tensors.
_LLAMA_OUTER = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LLAMA_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_GPT2_OUTER = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": POSITIONS,
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}
_GPT2_LAYER = {
    "ln_1.weight": "attn_norm.weight",
    "ln_1.bias": "attn_norm.bias",
    "attn.c_attn.weight": _FUSED,
    "attn.c_attn.bias": "attn_qkv.bias",
    "attn.c_proj.weight": "attn_output.weight",
    "attn.c_proj.bias": "attn_output.bias",
    "ln_2.weight": "ffn_norm.weight",
    "ln_2.bias": "ffn_norm.bias",
    "mlp.c_fc.weight": "ffn_up.weight",
    "mlp.c_fc.bias": "ffn_up.bias",
    "mlp.c_proj.weight": "ffn_down.weight",
    "mlp.c_proj.bias": "ffn_down.bias",
}
# Rows that are queries, keys and values, in the order of a fused tensor.
_PROJECTIONS = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
# Rows that turn.
_TURNED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")


def gguf_name(kind: Kind, hf_name: str) -> str:
    """llama.cpp's name of a tensor of Hugging Face's."""
    is_gpt2 = kind.name == _GPT2
    outer, layers = (_GPT2_OUTER, _GPT2_LAYER) if is_gpt2 else (_LLAMA_OUTER, _LLAMA_LAYER)
    name = hf_name.removeprefix(kind.layout.prefix)
    if name in outer:
        return outer[name]
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{layers[part]}"


def hf_name(kind: Kind, tensor: str) -> str:
    """Hugging Face's name of a tensor, without a prefix; an unknown one keeps its own, and is
    refused by it.
    """
    is_gpt2 = kind.name == _GPT2
    outer, layers = (_GPT2_OUTER, _GPT2_LAYER) if is_gpt2 else (_LLAMA_OUTER, _LLAMA_LAYER)
    _, _, of_layer = tensor.partition("blk.")
    layer, _, part = of_layer.partition(".")
    for name, gguf_part in layers.items():
        if gguf_part == part:
            return f"{'h' if is_gpt2 else 'layers'}.{layer}.{name}"
    outer_names = {gguf_outer: name for name, gguf_outer in outer.items()}
    return outer_names.get(tensor, tensor)


def _is_turned_over(kind: Kind, name: str) -> bool:
    """Whether a tensor has its inputs first in Hugging Face's."""
    # GPT-2's Conv1D, but not its tables.
    return kind.name == _GPT2 and name.startswith("blk.") and name.endswith(".weight")


def to_gguf(
    kind: Kind,
    weights: Mapping[str, Weight],
    names: Mapping[str, Names],
    architecture: Architecture,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a model by llama.cpp's names, in the order of `gguf_shapes`, and reads
    one weight of a layer at a time.

    Args:
      kind: which it is written as.
      weights: ours, by path.
      names: their axis names, by path.
      architecture: of the model.
    """
    factors = rope_factors(architecture)
    if factors is not None:
        yield FREQUENCIES, factors
    projections = []
    for hf_tensor, tensor in to_tensors(kind.layout, weights, names, architecture):
        name = gguf_name(kind, hf_tensor)
        part = name.split(".", 2)[-1]
        if _is_turned_over(kind, name) and tensor.ndim == 2:
            tensor = tensor.T
        if kind.turns_neighbours and part in _TURNED:
            tensor = _side_by_side(tensor, architecture.head_dim)
        if kind.is_fused and part in _PROJECTIONS:
            projections.append(tensor)
            if part != _PROJECTIONS[-1]:
                continue
            name, tensor = _fused_name(name), np.concatenate(projections)
            projections = []
        yield name, np.ascontiguousarray(tensor)


def gguf_shapes(kind: Kind, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model, by llama.cpp's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    if rope_factors(architecture) is not None:
        shapes[FREQUENCIES] = (architecture.head_dim // 2,)
    rows = 0
    for hf_tensor, shape in tensor_shapes(kind.layout, architecture).items():
        name = gguf_name(kind, hf_tensor)
        part = name.split(".", 2)[-1]
        if _is_turned_over(kind, name):
            shape = shape[::-1]
        if kind.is_fused and part in _PROJECTIONS:
            rows += shape[0]
            if part != _PROJECTIONS[-1]:
                continue
            name, shape = _fused_name(name), (rows, shape[1])
            rows = 0
        shapes[name] = shape
    return shapes


def rope_factors(architecture: Architecture) -> np.ndarray | None:
    """What a file divides the frequencies [head_dim/2] by, in float32; None: it has no such
    tensor.
    """
    if "rotary" not in architecture.options:
        return None
    theta, rope_type, scaling = architecture.options["rotary"]
    if rope_type != "llama3":
        return None
    plain, _ = Rotary(theta, "default").frequencies(architecture.head_dim)
    scaled, _ = Rotary(theta, rope_type, scaling).frequencies(architecture.head_dim)
    return (plain / scaled).astype(np.float32)


def _fused_name(name: str) -> str:
    return ".".join([*name.split(".")[:2], _FUSED])


def _side_by_side(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of queries or keys whose pairs stand half a head apart, with these side by side: the
    way back of `halves_apart`.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


class Source(Protocol):
    """Tensors of llama.cpp's names."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """By name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, its rows first."""

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""


class InMemory:
    """Tensors that are there, by llama.cpp's names."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors = dict(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, its rows first."""
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        return self.tensors[name]


class GGUFTensors(ForeignTensors):
    """The tensors of a file, by Hugging Face's names.

    Args:
      source: the tensors.
      file: where they are, as errors name it.
      kind: of the file.
      heads: of queries and of keys in each layer, and the width of a head.
      mend: what a user can do about damage.
    """

    def __init__(
        self,
        source: Source,
        file: storage.Path,
        kind: Kind,
        heads: tuple[tuple[int, ...], tuple[int, ...], int],
        mend: str,
    ):
        super().__init__(file, kind.layout.prefix, mend)
        self._source, self._kind = source, kind
        self._head_dim = heads[2]
        # Of each name the tensor of the file, and which of its rows.
        for name in source.tensors:
            if name == FREQUENCIES:
                continue
            layer, _, part = name.removeprefix("blk.").partition(".")
            if kind.is_fused and part == _FUSED and layer.isdigit() and int(layer) < len(heads[0]):
                self._add_parts(name, heads[0][int(layer)], heads[1][int(layer)])
            else:
                self.files[hf_name(kind, name)] = (name, None)

    def _add_parts(self, name: str, num_queries: int, num_keys: int) -> None:
        """Takes a fused tensor in, as the parts that it is made of."""
        stem, start = name.removesuffix(_FUSED), 0
        counts = (num_queries, num_keys, num_keys)
        last = self._source.shape(name)[0]
        for part, count in zip(_PROJECTIONS, counts, strict=True):
            end = start + count * self._head_dim
            # The last part has what is there, so that too many rows are noticed.
            rows = slice(start, last if part == _PROJECTIONS[-1] else end)
            self.files[hf_name(self._kind, stem + part)] = (name, rows)
            start = end

    def about(self, name: str) -> tuple[tuple[int, ...], str]:
        tensor, rows = self.files[name]
        shape = self._source.shape(tensor)
        if rows is not None:
            shape = (len(range(*rows.indices(shape[0]))), *shape[1:])
        elif _is_turned_over(self._kind, tensor):
            shape = shape[::-1]
        # Whatever it is stored as, it is read as float32.
        return shape, "F32"

    def __getitem__(self, name: str) -> np.ndarray:
        tensor, rows = self.files[name.removeprefix(self._prefix)]
        values = self._source.read(tensor)
        if rows is not None:
            values = values[rows]
        if _is_turned_over(self._kind, tensor) and values.ndim == 2:
            values = values.T
        if self._kind.turns_neighbours and tensor.split(".", 2)[-1] in _TURNED:
            values = halves_apart(values, len(values) // self._head_dim)
        return values
