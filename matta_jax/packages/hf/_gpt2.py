"""Hugging Face's GPT-2: config.json and safetensors, read and written without torch.

Stock GPT-2 has one d_ff for all layers and d_model / head_dim heads. Narrower layers are padded
with zero neurons, and fewer heads with zero heads: the function is the same, the cost is that of
the widest. What was there before the padding stands in config.json under `matta_jax`, so that an
import takes it off again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.models import MOST, MOST_LAYERS, Architecture
from matta_jax.nesting import (
    BLOCKS,
    Names,
    Run,
    SubModel,
    logical_names,
    merge_granules,
    split_granules,
)
from matta_jax.packages._safetensors import FolderTensors

_FAMILY = "gpt"

# Our weight in a block: Hugging Face's, and the logical axes of each of its dimensions.
_Dims = tuple[Names, ...]
_LAYER: dict[str, tuple[str, _Dims]] = {
    "attention/w_qkv": ("attn.c_attn.weight", (("d_model",), ("qkv", "heads", "head_dim"))),
    "attention/b_qkv": ("attn.c_attn.bias", (("qkv", "heads", "head_dim"),)),
    "attention/w_out": ("attn.c_proj.weight", (("heads", "head_dim"), ("d_model",))),
    "attention/b_out": ("attn.c_proj.bias", (("d_model",),)),
    "mlp/w_in": ("mlp.c_fc.weight", (("d_model",), ("d_ff",))),
    "mlp/b_in": ("mlp.c_fc.bias", (("d_ff",),)),
    "mlp/w_out": ("mlp.c_proj.weight", (("d_ff",), ("d_model",))),
    "mlp/b_out": ("mlp.c_proj.bias", (("d_model",),)),
    "norm_attention/scale": ("ln_1.weight", (("d_model",),)),
    "norm_attention/bias": ("ln_1.bias", (("d_model",),)),
    "norm_mlp/scale": ("ln_2.weight", (("d_model",),)),
    "norm_mlp/bias": ("ln_2.bias", (("d_model",),)),
}
_OUTER: dict[str, tuple[str, _Dims]] = {
    "embed/tokens": ("wte.weight", (("vocab",), ("d_model",))),
    "embed/positions": ("wpe.weight", (("positions",), ("d_model",))),
    "norm/scale": ("ln_f.weight", (("d_model",),)),
    "norm/bias": ("ln_f.bias", (("d_model",),)),
}
_PREFIX = "transformer."
# Masks that older versions of transformers stored, and the head, which is checked to be tied.
_HARMLESS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|lm_head\.weight")
# What our GPT-2 computes: a config that says otherwise is of another model.
_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}
_EQUIVALENT = {"activation_function": ("gelu_new", "gelu_pytorch_tanh")}
_MEND = "name the folder of a GPT-2 model, or fetch it again"

Reader = Callable[[tuple[Any, ...]], np.ndarray]
"""Returns the part of an array that an index names."""


def hf_config(architecture: Architecture, dtype: str, eos_id: int | None) -> dict[str, Any]:
    """The config.json of a model. Raises UserError when stock GPT-2 has no room for it."""
    if architecture.family.table is None:
        raise UserError(
            "format='hf' is for language models; write a scorer as format=safetensors or orbax"
        )
    if architecture.family_name != _FAMILY:
        raise UserError(
            f"format='hf' writes GPT-2, and this model is of the family "
            f"{architecture.family_name!r}; use format=safetensors"
        )
    num_heads = architecture.sub_model.largest("heads")
    room, remainder = divmod(architecture.d_model, architecture.head_dim)
    if remainder or num_heads > room:
        raise UserError(
            f"format='hf': {num_heads} heads of {architecture.head_dim} do not fit in d_model="
            f"{architecture.d_model} of stock GPT-2; extract fewer heads or a wider d_model, or "
            "use format=safetensors"
        )
    return {
        **_FIXED,
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": architecture.vocab_size,
        "n_positions": architecture.max_len,
        "n_embd": architecture.d_model,
        "n_layer": architecture.num_layers,
        "n_head": room,
        "n_inner": architecture.sub_model.largest("d_ff"),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "torch_dtype": dtype,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "matta_jax": _hidden_by_padding(architecture),
    }


def _hidden_by_padding(architecture: Architecture) -> dict[str, Any]:
    """What an import cannot see in padded tensors."""
    heads = architecture.along("heads")
    return {
        "num_heads": heads[0] if len(set(heads)) == 1 else list(heads),
        "d_ff": list(architecture.along("d_ff")),
        "head_granule": architecture.granules["heads"],
        "d_ff_granule": architecture.granules["d_ff"],
    }


def architecture_of_hf(folder: storage.Path, *, mend: str = _MEND) -> Architecture:
    """Reads config.json. Raises UserError when it is missing, damaged, or of another model than
    ours.
    """
    file = folder / "config.json"
    try:
        config = storage.read_json(file)
        _check_kind(config, file)
        return _architecture(config)
    except FileNotFoundError:
        raise UserError(
            f"{str(folder)!r} is not a Hugging Face model (no config.json); {mend}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        detail = " ".join(str(error).split())
        if isinstance(error, KeyError):
            detail = f"{error} is missing"
        raise UserError(
            f"{str(file)!r} cannot be read as GPT-2's config ({detail}); {mend}"
        ) from None


def _check_kind(config: Mapping[str, Any], file: storage.Path) -> None:
    """Raises UserError where a field has a value that our GPT-2 does not compute."""
    for field, value in _FIXED.items():
        if config.get(field, value) not in _EQUIVALENT.get(field, (value,)):
            raise UserError(
                f"{str(file)!r}: {field}={config[field]!r} is not supported, only "
                f"{value!r}; import a GPT-2 model"
            )


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config describes; raises KeyError, TypeError and ValueError."""
    _natural("model_type", len(config["model_type"]))
    d_model, room, layers = (
        _natural(name, config[name]) for name in ("n_embd", "n_head", "n_layer")
    )
    # Where n_inner is null or left out, GPT-2 takes four times the width.
    inner = 4 * d_model
    if config.get("n_inner") is not None:
        inner = _natural("n_inner", config["n_inner"])

    # A stock model has no padding; ours says in `matta_jax` what was there before it.
    stock = {"num_heads": room, "d_ff": [inner] * layers}
    stock |= {"head_granule": room, "d_ff_granule": inner}
    hidden = stock | config.get("matta_jax", {})
    heads = hidden["num_heads"]
    heads = [_natural("num_heads", n) for n in (heads if type(heads) is list else [heads] * layers)]
    widths = [_natural("d_ff", width) for width in hidden["d_ff"]]
    granules = {
        "heads": _natural("head_granule", hidden["head_granule"]),
        "d_ff": _natural("d_ff_granule", hidden["d_ff_granule"]),
    }
    rules = {
        "n_head divides n_embd": d_model % room == 0,
        "d_ff has n_layer entries": len(widths) == layers and len(heads) == layers,
        "n_inner is the largest d_ff": max(widths) == inner,
        "num_heads is at most n_head": max(heads) <= room,
        "head_granule divides num_heads": all(n % granules["heads"] == 0 for n in heads),
        "d_ff_granule divides d_ff": all(width % granules["d_ff"] == 0 for width in widths),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"it must be that {rule}")

    max_len = _natural("n_positions", config["n_positions"])
    return Architecture(
        family_name=_FAMILY,
        max_len=max_len,
        fixed={
            "vocab": _natural("vocab_size", config["vocab_size"]),
            "positions": max_len,
            "head_dim": d_model // room,
            "qkv": 3,
        },
        sub_model=SubModel(
            tuple(range(layers)),
            {"d_model": d_model},
            {"heads": tuple(heads), "d_ff": tuple(widths)},
        ),
        granules=granules,
    )


def _natural(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r:.40} must be a whole number of at least 1")
    # Before lists and shapes of that size are made.
    most = MOST_LAYERS if name == "n_layer" else MOST
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}")
    return value


def to_hf(
    flat: Mapping[str, np.ndarray], names: Mapping[str, Names], architecture: Architecture
) -> dict[str, Any]:
    """Returns the tensors of model.safetensors.

    Args:
      flat: our weights, by path.
      names: their axis names, by path.
      architecture: of the model.
    """
    tensors = {_PREFIX + hf_name: np.asarray(flat[path]) for path, (hf_name, _) in _OUTER.items()}
    room = _padded_sizes(architecture)
    layer = 0
    for i, run in enumerate(architecture.sub_model.runs):
        for j in range(len(run.layers)):
            for weight, (hf_name, dims) in _LAYER.items():
                path = f"{BLOCKS}/{i}/{weight}"
                tensor = _padded(np.asarray(flat[path][j]), names[path][1:], dims, room)
                tensors[f"{_PREFIX}h.{layer}.{hf_name}"] = tensor
            layer += 1
    return tensors


def _padded_sizes(architecture: Architecture) -> dict[str, int]:
    """The size of each axis in a stock model that has room for all layers."""
    return dict(architecture.fixed) | {
        "d_model": architecture.d_model,
        "heads": architecture.d_model // architecture.head_dim,
        "d_ff": architecture.sub_model.largest("d_ff"),
    }


def _padded(weight: np.ndarray, axes: Names, dims: _Dims, room: Mapping[str, int]) -> np.ndarray:
    """A layer's weight in Hugging Face's dimensions, filled up with zeros."""
    # A dimension of Hugging Face's joins several of our axes, such as heads and head_dim: padded
    # while they are apart, each head and each of query, key and value keeps its place.
    order = [name for dim in dims for name in dim]
    logical = logical_names(axes)
    part = merge_granules(weight, axes).transpose([logical.index(name) for name in order])
    padding = [(0, room[name] - n) for name, n in zip(order, part.shape, strict=True)]
    return np.pad(part, padding).reshape(_shape_of(dims, room))


def _shape_of(dims: _Dims, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(np.prod([sizes[name] for name in dim])) for dim in dims)


def readers(
    folder: storage.Path,
    architecture: Architecture,
    names: Mapping[str, Names],
    *,
    mend: str = _MEND,
) -> dict[str, Reader]:
    """For each of our weights, by path, a function that reads the part of an index from Hugging
    Face's files.

    Raises:
      UserError: files or tensors are missing, or of other shapes than config.json says.
    """
    tensors = FolderTensors(folder, _PREFIX, mend)
    _check_tensors(tensors, architecture)
    result: dict[str, Reader] = {
        path: _outer_reader(tensors, hf_name) for path, (hf_name, _) in _OUTER.items()
    }
    for i, run in enumerate(architecture.sub_model.runs):
        for weight in _LAYER:
            axes = names[f"{BLOCKS}/{i}/{weight}"][1:]
            stack = _Stack(tensors, architecture, run, weight, axes)
            result[f"{BLOCKS}/{i}/{weight}"] = stack.read
    return result


def _check_tensors(tensors: FolderTensors, architecture: Architecture) -> None:
    room = _padded_sizes(architecture)
    for hf_name, dims in _OUTER.values():
        tensors.check(hf_name, _shape_of(dims, room))
    _check_tied(tensors)
    names = {hf_name for hf_name, _ in _OUTER.values()}
    for layer in range(architecture.num_layers):
        for hf_name, dims in _LAYER.values():
            tensors.check(f"h.{layer}.{hf_name}", _shape_of(dims, room))
            names.add(f"h.{layer}.{hf_name}")
    if any(name.startswith(f"h.{architecture.num_layers}.") for name in tensors.files):
        raise UserError(
            f"{str(tensors.folder)!r}: there are more layers than "
            f"n_layer={architecture.num_layers} says; {tensors.mend}"
        )
    tensors.check_names(names, _HARMLESS)


def _check_tied(tensors: FolderTensors) -> None:
    """An untied head is another model than ours."""
    if "lm_head.weight" not in tensors.files:
        return
    if not np.array_equal(tensors["lm_head.weight"], tensors["wte.weight"]):
        raise UserError(
            f"{str(tensors.folder)!r}: lm_head.weight differs from wte.weight; only tied heads are "
            "supported"
        )


def _outer_reader(tensors: FolderTensors, hf_name: str) -> Reader:
    return lambda index: tensors[hf_name][index]


class _Stack:
    """One of our weights of a run of layers, read from the tensors of these layers."""

    def __init__(
        self,
        tensors: FolderTensors,
        architecture: Architecture,
        run: Run,
        weight: str,
        axes: Names,
    ):
        self._tensors, self._architecture, self._run = tensors, architecture, run
        self._hf_name, dims = _LAYER[weight]
        self._order: Sequence[str] = [name for dim in dims for name in dim]
        self._axes = axes

    def read(self, index: tuple[Any, ...]) -> np.ndarray:
        """Returns the part of an index."""
        layers = np.array(self._run.layers)[index[0]]
        stack = np.stack([self._layer(int(layer)) for layer in layers])
        return stack[(slice(None), *index[1:])]

    def _layer(self, layer: int) -> np.ndarray:
        """The weight of a layer, without the padding. Raises ValueError where that is not zero."""
        room = _padded_sizes(self._architecture)
        sizes = room | dict(self._run.sizes)
        name = f"h.{layer}.{self._hf_name}"
        padded = self._tensors[name].reshape([room[axis] for axis in self._order])
        part = padded[tuple(slice(0, sizes[axis]) for axis in self._order)]
        # What is cut off must add nothing, or the import would be another function.
        if np.count_nonzero(padded) != np.count_nonzero(part):
            raise ValueError(f"tensor {name} is not zero outside the sizes of config.json")

        logical = logical_names(self._axes)
        part = part.transpose([self._order.index(axis) for axis in logical])
        return split_granules(part, self._axes, self._architecture.granules)
