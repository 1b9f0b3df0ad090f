"""Hugging Face's ViT, as a classifier of images."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.config import VitConfig
from matta_jax.errors import UserError, listed, shorten
from matta_jax.models import Architecture
from matta_jax.packages.hf._encoder import EncoderLayout
from matta_jax.packages.hf._layout import Dims, Place, natural
from matta_jax.tokenizers import TextIds

_QKV: Dims = (("heads", "head_dim"), ("d_model",))
_VECTOR: Dims = (("d_model",),)
_STEM = "vit.encoder.layer.{}."
_LAYER = {
    "attention/w_qkv": Place(
        tuple(f"{_STEM}attention.attention.{part}.weight" for part in ("query", "key", "value")),
        _QKV,
        "qkv",
    ),
    "attention/b_qkv": Place(
        tuple(f"{_STEM}attention.attention.{part}.bias" for part in ("query", "key", "value")),
        (("heads", "head_dim"),),
        "qkv",
    ),
    "attention/w_out": Place(
        (f"{_STEM}attention.output.dense.weight",), (("d_model",), ("heads", "head_dim"))
    ),
    "attention/b_out": Place((f"{_STEM}attention.output.dense.bias",), _VECTOR),
    "norm_attention/scale": Place((f"{_STEM}layernorm_before.weight",), _VECTOR),
    "norm_attention/bias": Place((f"{_STEM}layernorm_before.bias",), _VECTOR),
    "mlp/w_in": Place((f"{_STEM}intermediate.dense.weight",), (("d_ff",), ("d_model",))),
    "mlp/b_in": Place((f"{_STEM}intermediate.dense.bias",), (("d_ff",),)),
    "mlp/w_out": Place((f"{_STEM}output.dense.weight",), (("d_model",), ("d_ff",))),
    "mlp/b_out": Place((f"{_STEM}output.dense.bias",), _VECTOR),
    "norm_mlp/scale": Place((f"{_STEM}layernorm_after.weight",), _VECTOR),
    "norm_mlp/bias": Place((f"{_STEM}layernorm_after.bias",), _VECTOR),
}
_EMBED = "vit.embeddings."
_OUTER = {
    "embed/w": Place(
        (f"{_EMBED}patch_embeddings.projection.weight",),
        (("d_model",), ("channels",), ("rows",), ("columns",)),
    ),
    "embed/b": Place((f"{_EMBED}patch_embeddings.projection.bias",), _VECTOR),
    # These two have leading axes of one entry.
    "embed/positions": Place((f"{_EMBED}position_embeddings",), ((), ("positions",), ("d_model",))),
    "embed/token": Place((f"{_EMBED}cls_token",), ((), (), ("d_model",))),
    "norm/scale": Place(("vit.layernorm.weight",), _VECTOR),
    "norm/bias": Place(("vit.layernorm.bias",), _VECTOR),
    "head/w": Place(("classifier.weight",), (("classes",), ("d_model",))),
    "head/b": Place(("classifier.bias",), (("classes",),)),
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_PROCESSOR = "preprocessor_config.json"
_THINKING = ("thinking_heads", "thinking_d_model", "thinking_d_ff")


class VitLayout(EncoderLayout):
    """ViT, whose heads fill the residual stream and whose head reads a class token."""

    title = "ViT"
    family_name = "vit"
    model_types = ("vit",)
    prefix = ""
    # Of a model that was not trained to classify.
    ignored = re.compile(r"vit\.pooler\..*|vit\.embeddings\.mask_token")
    usage = """import transformers

model = transformers.ViTForImageClassification.from_pretrained("THIS_FOLDER")
processor = transformers.AutoImageProcessor.from_pretrained("THIS_FOLDER")"""

    def with_more(self, folder: storage.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of the processor's config, how pixels are scaled."""
        file = folder / _PROCESSOR
        if not file.is_file():
            raise UserError(
                f"{str(folder)!r} holds no {_PROCESSOR}, which says how pixels are scaled; fetch "
                "it beside config.json"
            )
        processor = storage.read_json(file)
        scale = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
        for name, value in scale.items():
            stored = processor.get(name, value)
            if abs(float(stored) - float(value)) > 1e-9:
                raise UserError(
                    f"{str(file)!r}: {name}={shorten(stored)} is not supported, only {value}; "
                    "import another model"
                )
        scaling = {name: processor[name] for name in ("image_mean", "image_std")}
        return {**config, "matta_jax": scaling | dict(config.get("matta_jax", {}))}

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        del text_ids
        if architecture.options["image_pooling"] != "cls":
            raise UserError(
                f"format={self.form!r}: {self.stock} reads a class token, and this model the mean "
                "of patches; use format=safetensors"
            )
        self.check_stock(architecture)
        if architecture.earlier is not None:
            raise UserError(
                f"format={self.form!r}: {self.stock} runs one pass, and this model earlier ones "
                "before its own; extract one of thoughts=0, or use format=safetensors"
            )
        sub_model, options, fixed = (
            architecture.sub_model,
            architecture.options,
            architecture.fixed,
        )
        activations = {kind: name for name, kind in reversed(_ACTIVATIONS.items())}
        labels = [f"LABEL_{i}" for i in range(fixed["classes"])]
        return {
            "model_type": "vit",
            "architectures": ["ViTForImageClassification"],
            "image_size": options["image_size"],
            "patch_size": fixed["rows"],
            "num_channels": fixed["channels"],
            "hidden_size": architecture.d_model,
            "num_hidden_layers": architecture.num_layers,
            "num_attention_heads": sub_model.largest("heads"),
            "intermediate_size": sub_model.largest("d_ff"),
            "hidden_act": activations[options["activation"]],
            "layer_norm_eps": options["layer_norm_epsilon"],
            "qkv_bias": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "torch_dtype": dtype,
            "matta_jax": {
                "image_mean": list(options["image_mean"]),
                "image_std": list(options["image_std"]),
                "granules": dict(architecture.granules),
                # What a nest's members have alike, though this model runs one pass.
                **{name: list(options[name]) for name in _THINKING if name in options},
            },
        }

    def section(self, config: Mapping[str, Any]) -> VitConfig:
        if config.get("qkv_bias", True) is not True:
            raise UserError(
                f"qkv_bias={shorten(config['qkv_bias'])} is not supported, only True; import a ViT "
                "that has it"
            )
        activation = config.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise UserError(
                f"hidden_act={shorten(activation)} is not supported, only {listed(_ACTIVATIONS)}; "
                "import a model that has one of these"
            )
        labels = config.get("id2label", {"0": "", "1": ""})
        scaling = config["matta_jax"]
        section = VitConfig(
            num_layers=natural("num_hidden_layers", config["num_hidden_layers"], is_depth=True),
            d_model=natural("hidden_size", config["hidden_size"]),
            num_heads=natural("num_attention_heads", config["num_attention_heads"]),
            d_ff=natural("intermediate_size", config["intermediate_size"]),
            image_size=natural("image_size", config.get("image_size", 224)),
            patch_size=natural("patch_size", config.get("patch_size", 16)),
            num_channels=natural("num_channels", config.get("num_channels", 3)),
            image_classes=len(labels),
            activation=_ACTIVATIONS[activation],
            layer_norm_epsilon=config.get("layer_norm_eps", 1e-12),
            image_mean=tuple(scaling["image_mean"]),
            image_std=tuple(scaling["image_std"]),
        )
        thinking: dict[str, Any] = {
            name: tuple(scaling[name]) for name in _THINKING if name in scaling
        }
        return dataclasses.replace(section, **thinking)

    def more_documents(self, architecture: Architecture) -> Mapping[str, Any]:
        """How pixels are scaled, as transformers read it."""
        options, channels = architecture.options, architecture.fixed["channels"]
        size = options["image_size"]
        return {
            _PROCESSOR: {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": {"height": size, "width": size},
                "resample": 2,
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": of_channels(options["image_mean"], channels),
                "image_std": of_channels(options["image_std"], channels),
            }
        }

    def outer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_OUTER)

    def layer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_LAYER)


def of_channels(values: Sequence[float], channels: int) -> list[float]:
    """How pixels are scaled, a number for each channel."""
    return list(values) * (channels if len(values) == 1 else 1)
