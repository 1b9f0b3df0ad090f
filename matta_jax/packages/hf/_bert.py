"""Hugging Face's BERT, as sentence-transformers use it: an encoder without a head."""

import re
from collections.abc import Mapping
from typing import Any

from matta_jax import storage
from matta_jax.config import EmbedderConfig
from matta_jax.errors import UserError, listed, shorten
from matta_jax.models import Architecture
from matta_jax.models.families import family_of
from matta_jax.nesting import SubModel
from matta_jax.packages.hf._layout import Dims, Layout, Place, natural
from matta_jax.tokenizers import TextIds

_QKV: Dims = (("heads", "head_dim"), ("d_model",))
_VECTOR: Dims = (("d_model",),)
_ATTENTION = "encoder.layer.{}.attention."
_LAYER = {
    "attention/w_qkv": Place(
        tuple(f"{_ATTENTION}self.{name}.weight" for name in ("query", "key", "value")), _QKV, "qkv"
    ),
    "attention/b_qkv": Place(
        tuple(f"{_ATTENTION}self.{name}.bias" for name in ("query", "key", "value")),
        (("heads", "head_dim"),),
        "qkv",
    ),
    "attention/w_out": Place(
        (f"{_ATTENTION}output.dense.weight",), (("d_model",), ("heads", "head_dim"))
    ),
    "attention/b_out": Place((f"{_ATTENTION}output.dense.bias",), _VECTOR),
    "norm_attention/scale": Place((f"{_ATTENTION}output.LayerNorm.weight",), _VECTOR),
    "norm_attention/bias": Place((f"{_ATTENTION}output.LayerNorm.bias",), _VECTOR),
    "mlp/w_in": Place(("encoder.layer.{}.intermediate.dense.weight",), (("d_ff",), ("d_model",))),
    "mlp/b_in": Place(("encoder.layer.{}.intermediate.dense.bias",), (("d_ff",),)),
    "mlp/w_out": Place(("encoder.layer.{}.output.dense.weight",), (("d_model",), ("d_ff",))),
    "mlp/b_out": Place(("encoder.layer.{}.output.dense.bias",), _VECTOR),
    "norm_mlp/scale": Place(("encoder.layer.{}.output.LayerNorm.weight",), _VECTOR),
    "norm_mlp/bias": Place(("encoder.layer.{}.output.LayerNorm.bias",), _VECTOR),
}
_OUTER = {
    "embed/tokens": Place(("embeddings.word_embeddings.weight",), (("vocab",), ("d_model",))),
    "embed/positions": Place(
        ("embeddings.position_embeddings.weight",), (("positions",), ("d_model",))
    ),
    "embed/types": Place(("embeddings.token_type_embeddings.weight",), (("types",), ("d_model",))),
    "embed/norm/scale": Place(("embeddings.LayerNorm.weight",), _VECTOR),
    "embed/norm/bias": Place(("embeddings.LayerNorm.bias",), _VECTOR),
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
# What stock BERT has no field for, and stands in config.json under `matta_jax`.
_FACTS = ("embed", "pooling", "similarity_scale")
_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


class BertLayout(Layout):
    """BERT, whose heads fill the residual stream."""

    title = "BERT"
    family_name = "embedder"
    model_types = ("bert",)
    prefix = "bert."
    # A head for another task, and what older versions of transformers stored.
    ignored = re.compile(r"pooler\..*|cls\..*|classifier\..*|embeddings\.position_ids")

    def with_more(self, folder: storage.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a folder of sentence-transformers, how it pools."""
        modules = folder / "modules.json"
        if not modules.is_file():
            return config
        kinds = {module["type"].rpartition(".")[2] for module in storage.read_json(modules)}
        unknown = sorted(kinds - {"Transformer", "Pooling", "Normalize"})
        if unknown:
            raise UserError(
                f"{str(modules)!r}: the module {unknown[0]} is not supported, only Transformer, "
                "Pooling and Normalize; import another model"
            )

        file = folder / "1_Pooling" / "config.json"
        modes = storage.read_json(file)
        chosen = [name for name in modes if "pooling_mode" in name and modes[name] is True]
        if chosen not in ([name] for name in _POOLING):
            raise UserError(
                f"{str(file)!r}: {listed(chosen) or 'no pooling'} is not supported, only one of "
                f"{listed(_POOLING)}; import another model"
            )
        facts = {"pooling": _POOLING[chosen[0]]} | dict(config.get("matta_jax", {}))
        return {**config, "matta_jax": facts}

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        del text_ids
        _check_stock(architecture)
        sub_model, options = architecture.sub_model, architecture.options
        names = {kind: name for name, kind in reversed(_ACTIVATIONS.items())}
        return {
            "model_type": "bert",
            **_FIXED,
            "architectures": ["BertModel"],
            "vocab_size": architecture.vocab_size,
            "max_position_embeddings": architecture.max_len,
            "type_vocab_size": architecture.fixed["types"],
            "hidden_size": architecture.d_model,
            "num_hidden_layers": architecture.num_layers,
            "num_attention_heads": sub_model.largest("heads"),
            "intermediate_size": sub_model.largest("d_ff"),
            "hidden_act": names[options["activation"]],
            "layer_norm_eps": options["layer_norm_epsilon"],
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "torch_dtype": dtype,
            "matta_jax": {
                "embed": sub_model.sizes["embed"],
                "pooling": options["pooling"],
                "similarity_scale": options["similarity_scale"],
                "granules": dict(architecture.granules),
            },
        }

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        section = self.section(config)
        layers = tuple(range(section.num_layers))
        family = family_of(self.family_name)
        sizes = section.nested_sizes()
        facts = config.get("matta_jax", {})
        granules = {"heads": sizes["heads"], "d_ff": sizes["d_ff"]} | facts.get("granules", {})
        for axis, granule in granules.items():
            if sizes[axis] % natural(axis, granule):
                raise ValueError(f"the granule of {axis} must divide {sizes[axis]}")
        return Architecture(
            family_name=self.family_name,
            max_len=section.max_len,
            fixed=family.fixed_sizes(section),
            sub_model=SubModel(layers, sizes),
            granules=granules,
            options=family.options(section, layers),
        )

    def section(self, config: Mapping[str, Any]) -> EmbedderConfig:
        for name, value in _FIXED.items():
            if config.get(name, value) != value:
                raise UserError(
                    f"{name}={shorten(config[name])} is not supported, only {value!r}; import a "
                    "BERT that has it"
                )
        activation = config.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise UserError(
                f"hidden_act={shorten(activation)} is not supported, only {listed(_ACTIVATIONS)}; "
                "import a model that has one of these"
            )
        facts = config.get("matta_jax", {})
        return EmbedderConfig(
            vocab_size=natural("vocab_size", config["vocab_size"]),
            num_layers=natural("num_hidden_layers", config["num_hidden_layers"], is_depth=True),
            d_model=natural("hidden_size", config["hidden_size"]),
            num_heads=natural("num_attention_heads", config["num_attention_heads"]),
            d_ff=natural("intermediate_size", config["intermediate_size"]),
            max_len=natural("max_position_embeddings", config["max_position_embeddings"]),
            num_types=natural("type_vocab_size", config.get("type_vocab_size", 2)),
            activation=_ACTIVATIONS[activation],
            layer_norm_epsilon=config.get("layer_norm_eps", 1e-12),
            **{name: facts[name] for name in _FACTS if name in facts},
        )

    def outer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_OUTER)

    def layer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_LAYER)


def _check_stock(architecture: Architecture) -> None:
    """Raises UserError where stock BERT has no room for a model."""
    for axis in architecture.sub_model.per_layer:
        raise UserError(
            f"format='hf': layers of several {axis} do not fit stock BERT; extract one size, or "
            "use format=safetensors"
        )
    heads = architecture.sub_model.sizes["heads"]
    if heads * architecture.head_dim != architecture.d_model:
        raise UserError(
            f"format='hf': {heads} heads of {architecture.head_dim} do not fill d_model="
            f"{architecture.d_model} of stock BERT; extract all heads, or use format=safetensors"
        )
