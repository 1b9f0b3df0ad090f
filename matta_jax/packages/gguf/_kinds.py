"""The kinds of models that llama.cpp knows, and which of them a model of ours is written as.

Layers of several sizes are of the kinds `deci` and `openelm` alone, which have a width and a number
of heads for each layer; `gpt2` has zero neurons and heads up to its widest layer.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.packages.hf import GPT2Layout, Layout, LlamaLayout, Qwen2Layout, Qwen3Layout

_ELSE = "use format=safetensors"


class _EachLayer(LlamaLayout):
    """Layers of their own sizes, whose heads need not divide d_model."""

    heads_divide = False

    def layer_room(self, architecture: Architecture, layer: int) -> dict[str, int]:
        return dict(architecture.fixed) | dict(architecture.sub_model.sizes_in(layer) or {})


class _Biased(_EachLayer, Qwen2Layout):
    pass


class _Normed(_EachLayer, Qwen3Layout):
    pass


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of models of llama.cpp.

    Attributes:
      name: `general.architecture` of its files.
      layout: Hugging Face's names of its tensors, and what sizes they have here.
      turns_neighbours: whether the rows of queries and keys that turn together are side by side,
        and not half a head apart.
      is_fused: whether queries, keys and values are one tensor.
      has_factors: whether factors of its frequencies may stand beside the weights.
      has_layer_sizes: whether its layers may have sizes of their own.
    """

    name: str
    layout: Layout
    turns_neighbours: bool = False
    is_fused: bool = False
    has_factors: bool = False
    has_layer_sizes: bool = True


_KINDS = (
    Kind("gpt2", GPT2Layout(), has_layer_sizes=False),
    Kind("llama", _EachLayer(), turns_neighbours=True, has_factors=True),
    Kind("deci", _EachLayer(), turns_neighbours=True, has_factors=True),
    Kind("deci", _Biased(), turns_neighbours=True, has_factors=True),
    Kind("qwen2", _Biased()),
    Kind("qwen3", _Normed()),
    Kind("openelm", _Normed(), is_fused=True),
)
KIND_NAMES = tuple(dict.fromkeys(kind.name for kind in _KINDS))


def kind_named(name: str, *, has_biases: bool) -> Kind:
    """The kind of a file, of which `deci` may have biases of queries, keys and values."""
    kinds = [kind for kind in _KINDS if kind.name == name]
    return kinds[-1] if has_biases else kinds[0]


def kind_of(architecture: Architecture) -> Kind:
    """The kind that a model of ours is written as. Raises UserError where llama.cpp has none."""
    if architecture.family_name == "gpt":
        _check_gpt2(architecture)
        return _KINDS[0]
    if architecture.family_name != "llama":
        raise UserError(
            f"format='gguf' is for GPT-2, Llama, Qwen 2.5 and Qwen 3, and this model is of the "
            f"family {architecture.family_name!r}; {_ELSE}"
        )

    options = architecture.options
    _check_block(options)
    is_mixed = bool(architecture.sub_model.per_layer)
    name = "deci" if is_mixed else "llama"
    if options["qkv_bias"]:
        # llama.cpp's Qwen 2.5 takes queries to be as wide as the residual stream.
        name = "qwen2" if not is_mixed and _fills(architecture) else "deci"
    if options["qk_norm"]:
        name = "openelm" if is_mixed else "qwen3"
    if name == "openelm" and not options["tie_embeddings"]:
        raise UserError(
            "format='gguf': model.tie_embeddings=False with layers of several sizes and norms of "
            f"queries and keys has no form in llama.cpp; extract a single size, or {_ELSE}"
        )
    kind = kind_named(name, has_biases=options["qkv_bias"])
    _check_rope(kind, options)
    return kind


def _fills(architecture: Architecture) -> bool:
    """Whether the queries of a model of one size are as wide as its residual stream."""
    queries = architecture.sub_model.largest("kv_heads") * architecture.fixed["queries"]
    return queries * architecture.head_dim == architecture.d_model


def _check_gpt2(architecture: Architecture) -> None:
    """Raises UserError where heads cannot fill the residual stream, zero heads among them."""
    heads, head_dim = architecture.sub_model.largest("heads"), architecture.head_dim
    if architecture.d_model % head_dim or heads * head_dim > architecture.d_model:
        raise UserError(
            f"format='gguf': {heads} heads of {head_dim} do not fit in d_model="
            f"{architecture.d_model} of llama.cpp's GPT-2; extract fewer heads or a wider d_model, "
            f"or {_ELSE}"
        )


def _check_block(options: Mapping[str, Any]) -> None:
    """Raises UserError for what no block of llama.cpp's that is written here computes."""
    computed: dict[str, Any] = {
        "post_norms": False,
        "norm_offset": 0.0,
        "gate": "silu",
        "query_scale": None,
    }
    for name, value in computed.items():
        if options[name] != value:
            raise UserError(
                f"format='gguf': model.{name}={options[name]!r} must be {value!r}: Gemma and what "
                f"else has it is not written as GGUF; {_ELSE}"
            )
    if not math.isclose(options["embed_scale"], 1.0, rel_tol=1e-6):
        raise UserError(
            f"format='gguf': model.embed_scale={options['embed_scale']} must be 1: llama.cpp's "
            f"blocks of this kind have no factor of the embedding; {_ELSE}"
        )
    if any(options["local_layers"]):
        raise UserError(
            f"format='gguf': model.window={options['window']} must be None: llama.cpp's blocks of "
            f"this kind have no local layers; {_ELSE}"
        )
    if options["qkv_bias"] and options["qk_norm"]:
        raise UserError(
            "format='gguf': model.qkv_bias=True beside model.qk_norm=True has no form in "
            f"llama.cpp; {_ELSE}"
        )


# What llama.cpp computes where a file says no more than factor and length.
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": 1.0}


def _check_rope(kind: Kind, options: Mapping[str, Any]) -> None:
    """Raises UserError for scalings of frequencies that the kind has not."""
    _, rope_type, factors = options["rotary"]
    scaling = dict(factors)
    if rope_type == "llama3" and not kind.has_factors:
        raise UserError(
            f"format='gguf': model.rope_type='llama3' has no form in llama.cpp's {kind.name}, only "
            f"default, linear and yarn; {_ELSE}"
        )
    if rope_type != "yarn":
        return
    sharpness = 0.1 * math.log(scaling["factor"]) + 1
    expected = {**_YARN, "attention_factor": sharpness, "mscale": 1.0}
    for name, value in scaling.items():
        if name in ("factor", "original_max_position_embeddings"):
            continue
        if name not in expected or not math.isclose(value, expected[name], rel_tol=1e-6):
            raise UserError(
                f"format='gguf': model.rope_scaling[{name!r}]={value} of yarn has no form in "
                f"llama.cpp, but for {expected.get(name, 'none at all')}; {_ELSE}"
            )
