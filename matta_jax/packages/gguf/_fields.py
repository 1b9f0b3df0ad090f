"""What a GGUF file says of a model: its fields out of our architecture, and back as config.json
would say it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.models.layers import Rotary
from matta_jax.packages.gguf._file import GGUFFile
from matta_jax.packages.gguf._kinds import Kind
from matta_jax.packages.gguf._tensors import FREQUENCIES

# What no field of llama.cpp's tells an import: granules, padding, numbers of more digits.
_OURS = "matta_jax.model"
# Of Llama 3.1 and 3.3, and of 3.2: files hold what these make of the frequencies alone.
LLAMA3: tuple[dict[str, Any], ...] = tuple(
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)


def fields_of(kind: Kind, architecture: Architecture) -> dict[str, Any]:
    """The fields of a model, by name: what an engine computes with."""
    described = kind.layout.describe(architecture, "float32", None)
    if kind.name == "gpt2":
        fields = _gpt2_fields(described)
        remembered = {"matta_jax": described["matta_jax"]}
    else:
        fields = _llama_fields(kind, architecture)
        names = ("matta_jax", "rope_parameters", "rms_norm_eps")
        remembered = {name: described[name] for name in names}
    fields = {f"{kind.name}.{name}": value for name, value in fields.items()}
    return fields | {_OURS: storage.json_text(remembered)}


def _gpt2_fields(described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context_length": described["n_positions"],
        "embedding_length": described["n_embd"],
        "block_count": described["n_layer"],
        "feed_forward_length": described["n_inner"],
        "attention.head_count": described["n_head"],
        "attention.layer_norm_epsilon": float(described["layer_norm_epsilon"]),
        "vocab_size": described["vocab_size"],
    }


def _llama_fields(kind: Kind, architecture: Architecture) -> dict[str, Any]:
    groups, queries = architecture.along("kv_heads"), architecture.fixed["queries"]
    head_dim = architecture.head_dim
    theta, rope_type, factors = architecture.options["rotary"]
    fields: dict[str, Any] = {
        "context_length": architecture.max_len,
        "embedding_length": architecture.d_model,
        "block_count": architecture.num_layers,
        "feed_forward_length": _by_layer(architecture.along("d_ff")),
        "attention.head_count": _by_layer([count * queries for count in groups]),
        "attention.head_count_kv": _by_layer(groups),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(architecture.options["norm_epsilon"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(theta),
        "vocab_size": architecture.vocab_size,
    }
    scaling = dict(factors)
    if rope_type in ("linear", "yarn"):
        fields["rope.scaling.type"] = rope_type
        fields["rope.scaling.factor"] = float(scaling["factor"])
    if rope_type == "yarn":
        length = int(scaling["original_max_position_embeddings"])
        fields["rope.scaling.original_context_length"] = length
    return fields


def _by_layer(sizes: Sequence[int]) -> int | list[int]:
    """One size, or that of each layer."""
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def gpt2_config(file: GGUFFile, kind: Kind) -> dict[str, Any]:
    """What config.json would say of a GPT-2. Raises KeyError where a field is missing."""
    sizes = {
        "n_positions": "context_length",
        "n_embd": "embedding_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "n_inner": "feed_forward_length",
    }
    config = {name: file.fields[f"{kind.name}.{field}"] for name, field in sizes.items()}
    epsilon = file.fields[f"{kind.name}.attention.layer_norm_epsilon"]
    config |= {"model_type": "gpt2", "layer_norm_epsilon": _short(epsilon)}
    config["vocab_size"] = file.shape("token_embd.weight")[0]
    return config | {"matta_jax": _remembered(file).get("matta_jax", {})}


def llama_config(file: GGUFFile, kind: Kind) -> dict[str, Any]:
    """What config.json would say of a Llama or Qwen. Raises KeyError where a field is missing, and
    UserError for heads that turn in part.
    """

    def said(name: str) -> Any:
        return file.fields[f"{kind.name}.{name}"]

    num_layers, heads = said("block_count"), said("attention.head_count")
    groups = file.fields.get(f"{kind.name}.attention.head_count_kv", heads)
    widths = said("feed_forward_length")
    remembered = _remembered(file)
    epsilon = said("attention.layer_norm_rms_epsilon")
    config = {
        "model_type": kind.layout.model_types[0],
        "hidden_size": said("embedding_length"),
        "intermediate_size": _largest(widths),
        "num_hidden_layers": num_layers,
        "num_attention_heads": _largest(heads),
        "num_key_value_heads": _largest(groups),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": _exact(epsilon, remembered.get("rms_norm_eps")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": file.shape("token_embd.weight")[0],
    }
    if "matta_jax" in remembered:
        config["matta_jax"] = remembered["matta_jax"]
    elif isinstance(widths, list) or isinstance(groups, list):
        config["matta_jax"] = _layer_sizes(groups, widths, num_layers)
    _check_groups(heads, groups)
    for name in ("attention.key_length", "rope.dimension_count"):
        head_dim = file.fields.get(f"{kind.name}.{name}")
        if head_dim is not None and config.setdefault("head_dim", head_dim) != head_dim:
            raise UserError(
                f"{name}={head_dim} is not the width of a head, {config['head_dim']}: heads that "
                "turn in part are not supported; name another model"
            )
    return config | {"rope_parameters": _rope(file, kind, remembered.get("rope_parameters"))}


def _remembered(file: GGUFFile) -> dict[str, Any]:
    """What a file of ours says beside llama.cpp's fields; nothing in a file from elsewhere."""
    try:
        remembered = storage.parse_json(file.fields.get(_OURS, "{}"))
    except ValueError:
        raise UserError(f"{_OURS} is damaged; write the file again") from None
    return remembered if isinstance(remembered, dict) else {}


def _short(number: float) -> float:
    """A float32 of a file as it was written: 1e-05 would be 9.99999974e-06."""
    return float(f"{number:.6g}")


def _exact(number: float, remembered: Any) -> float:
    """A float32 of a file with all its digits, where a file of ours remembers them."""
    if isinstance(remembered, float) and np.float32(remembered) == np.float32(number):
        return remembered
    return _short(number)


def _largest(sizes: int | list[int]) -> int:
    return max(sizes) if isinstance(sizes, list) else sizes


def _layer_sizes(
    groups: int | list[int], widths: int | list[int], num_layers: int
) -> dict[str, Any]:
    """The sizes of each layer, in the granules that fit all of them."""
    layer_groups = groups if isinstance(groups, list) else [groups] * num_layers
    layer_widths = widths if isinstance(widths, list) else [widths] * num_layers
    return {
        "num_kv_heads": layer_groups,
        "d_ff": layer_widths,
        "num_kv_heads_granule": math.gcd(*layer_groups),
        "d_ff_granule": math.gcd(*layer_widths),
    }


def _check_groups(heads: int | list[int], groups: int | list[int]) -> None:
    """Raises UserError unless all layers have as many queries for each of their keys."""
    layers = max(len(sizes) if isinstance(sizes, list) else 1 for sizes in (heads, groups))
    all_heads = heads if isinstance(heads, list) else [heads] * layers
    all_groups = groups if isinstance(groups, list) else [groups] * layers
    ratios = {
        num_heads / count if count else 0.0
        for num_heads, count in zip(all_heads, all_groups, strict=False)
    }
    if len(ratios) > 1:
        raise UserError(
            f"attention.head_count={all_heads} and attention.head_count_kv={all_groups} must have "
            "one ratio in all layers; name another model"
        )


def _rope(file: GGUFFile, kind: Kind, remembered: Any) -> dict[str, Any]:
    theta = float(file.fields.get(f"{kind.name}.rope.freq_base", 10_000.0))
    if isinstance(remembered, dict):
        theta = _exact(theta, remembered.get("rope_theta"))
    scaling = file.fields.get(f"{kind.name}.rope.scaling.type", "none")
    if FREQUENCIES in file.tensors:
        return {**_llama3_of(file, theta, remembered), "rope_theta": theta}
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}

    parameters = {"rope_type": scaling, "rope_theta": theta}
    parameters["factor"] = file.fields[f"{kind.name}.rope.scaling.factor"]
    length = file.fields.get(f"{kind.name}.rope.scaling.original_context_length")
    if scaling == "yarn" and length is not None:
        parameters["original_max_position_embeddings"] = length
    is_alike = isinstance(remembered, dict) and all(
        remembered.get(name) == value for name, value in parameters.items()
    )
    return remembered if is_alike else parameters


def _llama3_of(file: GGUFFile, theta: float, remembered: Any) -> dict[str, Any]:
    """The parameters whose factors of the frequencies a file holds."""
    factors = file.read(FREQUENCIES)
    choices = list(LLAMA3)
    if isinstance(remembered, dict) and remembered.get("rope_type") == "llama3":
        choices.insert(0, remembered)
    plain, _ = Rotary(theta, "default").frequencies(2 * len(factors))
    for parameters in choices:
        numbers = {name: value for name, value in parameters.items() if name != "rope_type"}
        scaled, _ = Rotary(theta, "llama3", tuple(numbers.items())).frequencies(2 * len(factors))
        if np.allclose(factors, plain / scaled, rtol=1e-3):
            return dict(parameters)
    raise UserError(
        f"{FREQUENCIES} is of no model of Llama 3.1 to 3.3; import its Hugging Face folder by --hf"
    )
