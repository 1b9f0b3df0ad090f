"""Hugging Face's BERT, as sentence-transformers use it: an encoder without a head."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.config import EmbedderConfig
from matta_jax.errors import UserError, listed, shorten
from matta_jax.models import Architecture
from matta_jax.packages.hf._encoder import EncoderLayout
from matta_jax.packages.hf._layout import Dims, Place, natural
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
_CUT = "2_Dense"
# What stock BERT has no field for, and stands in config.json under `matta_jax`.
_FACTS = ("embed", "pooling", "similarity_scale")
_POOLING = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}
"""By the names of older and newer versions of sentence-transformers."""
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


class BertLayout(EncoderLayout):
    """BERT, whose heads fill the residual stream."""

    title = "BERT"
    family_name = "embedder"
    model_types = ("bert",)
    prefix = "bert."
    # A head for another task, and what older versions of transformers stored.
    ignored = re.compile(r"pooler\..*|cls\..*|classifier\..*|embeddings\.position_ids")

    usage = """import sentence_transformers

model = sentence_transformers.SentenceTransformer("THIS_FOLDER")
vectors = model.encode(texts)"""

    def with_more(self, folder: storage.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a folder of sentence-transformers, how it pools."""
        modules = folder / "modules.json"
        if not modules.is_file():
            return config
        facts = dict(config.get("matta_jax", {}))
        known_kinds = ["Transformer", "Pooling", "Normalize"]
        # The cut of a vector that was written here, which `embed` says too.
        known_kinds += ["Dense"] if "embed" in facts else []
        kinds = {module["type"].rpartition(".")[2] for module in storage.read_json(modules)}
        unknown = sorted(kinds - set(known_kinds))
        if unknown:
            raise UserError(
                f"{str(modules)!r}: the module {unknown[0]} is not supported, only Transformer, "
                "Pooling and Normalize; import another model"
            )

        file = folder / "1_Pooling" / "config.json"
        modes = _pooling_modes(storage.read_json(file))
        if len(modes) != 1 or modes[0] not in _POOLING:
            raise UserError(
                f"{str(file)!r}: pooling by {listed(modes) or 'nothing'} is not supported, only by "
                f"one of {listed(_POOLING)}; import another model"
            )
        return {**config, "matta_jax": {"pooling": _POOLING[modes[0]]} | facts}

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        del text_ids
        self.check_stock(architecture)
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

    def more_documents(self, architecture: Architecture) -> Mapping[str, Any]:
        """The documents of sentence-transformers, whose vectors are then ours."""
        size, d_model = architecture.sub_model.sizes["embed"], architecture.d_model
        pooling = architecture.options["pooling"]
        names = ["", "1_Pooling", *([_CUT] if size < d_model else []), "3_Normalize"]
        kinds = ["Transformer", "Pooling", *(["Dense"] if size < d_model else []), "Normalize"]
        modules = [
            {"idx": i, "name": str(i), "path": name, "type": f"sentence_transformers.models.{kind}"}
            for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]
        documents: dict[str, Any] = {
            "modules.json": modules,
            "1_Pooling/config.json": {
                "word_embedding_dimension": d_model,
                "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean",
            },
            "sentence_bert_config.json": {
                "max_seq_length": architecture.max_len,
                "do_lower_case": False,
            },
        }
        if size < d_model:
            documents[f"{_CUT}/config.json"] = {
                "in_features": d_model,
                "out_features": size,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            }
        return documents

    def more_tensors(self, architecture: Architecture) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The cut of a vector, as a product: sentence-transformers has no other module for it."""
        size, d_model = architecture.sub_model.sizes["embed"], architecture.d_model
        if size == d_model:
            return {}
        return {_CUT: {"linear.weight": np.eye(size, d_model, dtype=np.float32)}}

    def outer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_OUTER)

    def layer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_LAYER)


def _pooling_modes(document: Mapping[str, Any]) -> list[str]:
    """The modes that a pooling's config names: in one field, or by a field of each."""
    if isinstance(document.get("pooling_mode"), str):
        return [document["pooling_mode"]]
    stem = "pooling_mode_"
    return [
        name.removeprefix(stem)
        for name, value in document.items()
        if name.startswith(stem) and value is True
    ]
