"""ViT and DeiT by timm's names: a config.json that names an architecture, and weights whose shapes
say the rest.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from matta_jax import storage
from matta_jax.errors import UserError, listed, shorten
from matta_jax.models import Architecture
from matta_jax.packages._safetensors import FolderTensors
from matta_jax.packages.hf._layout import Dims, Place, natural
from matta_jax.packages.hf._timm_config import EPSILON, SIZES, timm_config
from matta_jax.packages.hf._vit import VitLayout
from matta_jax.tokenizers import TextIds

_VECTOR: Dims = (("d_model",),)
_BLOCK = "blocks.{}."
_LAYER = {
    # Rows are those of queries, then keys, then values.
    "attention/w_qkv": Place(
        (f"{_BLOCK}attn.qkv.weight",), (("qkv", "heads", "head_dim"), ("d_model",))
    ),
    "attention/b_qkv": Place((f"{_BLOCK}attn.qkv.bias",), (("qkv", "heads", "head_dim"),)),
    "attention/w_out": Place((f"{_BLOCK}attn.proj.weight",), (("d_model",), ("heads", "head_dim"))),
    "attention/b_out": Place((f"{_BLOCK}attn.proj.bias",), _VECTOR),
    "norm_attention/scale": Place((f"{_BLOCK}norm1.weight",), _VECTOR),
    "norm_attention/bias": Place((f"{_BLOCK}norm1.bias",), _VECTOR),
    "mlp/w_in": Place((f"{_BLOCK}mlp.fc1.weight",), (("d_ff",), ("d_model",))),
    "mlp/b_in": Place((f"{_BLOCK}mlp.fc1.bias",), (("d_ff",),)),
    "mlp/w_out": Place((f"{_BLOCK}mlp.fc2.weight",), (("d_model",), ("d_ff",))),
    "mlp/b_out": Place((f"{_BLOCK}mlp.fc2.bias",), _VECTOR),
    "norm_mlp/scale": Place((f"{_BLOCK}norm2.weight",), _VECTOR),
    "norm_mlp/bias": Place((f"{_BLOCK}norm2.bias",), _VECTOR),
}
_OUTER = {
    "embed/w": Place(
        ("patch_embed.proj.weight",), (("d_model",), ("channels",), ("rows",), ("columns",))
    ),
    "embed/b": Place(("patch_embed.proj.bias",), _VECTOR),
    "embed/positions": Place(("pos_embed",), ((), ("positions",), ("d_model",))),
    "embed/token": Place(("cls_token",), ((), (), ("d_model",))),
    "norm/scale": Place(("norm.weight",), _VECTOR),
    "norm/bias": Place(("norm.bias",), _VECTOR),
    "head/w": Place(("head.weight",), (("classes",), ("d_model",))),
    "head/b": Place(("head.bias",), (("classes",),)),
}

_MEND = "fetch the model again"
_NAME = re.compile(r"(?:vit|deit)_([a-z]+)_patch(\d{1,4})_\d{1,5}")
# Arguments of timm that change what is computed, and the values that leave it a plain ViT.
_PLAIN = {
    "global_pool": "token",
    "qkv_bias": True,
    "proj_bias": True,
    "qk_norm": False,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "init_values": None,
    "class_token": True,
    "pos_embed": "learn",
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "final_norm": True,
    "fc_norm": None,
    "norm_layer": None,
}
# Those that the weights' shapes say too, that say how to train, or that are read by themselves.
_HARMLESS = re.compile(
    r"img_size|patch_size|in_chans|num_classes|embed_dim|depth|num_heads|mlp_ratio|\w+_rate"
    r"|weight_init|fix_init|act_layer"
)
# Activations of timm by their names, and those of Hugging Face.
_ACTIVATIONS = {None: "gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


class TimmVitLayout(VitLayout):
    """ViT and DeiT of timm: the same transformer, with query, key and value in one matrix."""

    title = "timm's ViT"
    form: ClassVar[str] = "timm"
    ignored = re.compile(r"(?!)")
    usage: ClassVar[str] = """import timm

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)"""

    @property
    def stock(self) -> str:
        return self.title

    def check(self, architecture: Architecture) -> None:
        """Raises UserError where timm's ViT computes something else than a model."""
        if architecture.family_name != self.family_name:
            raise UserError(
                f"format='timm' has vision transformers alone, and this model is of the family "
                f"{architecture.family_name!r}; use format=hf"
            )
        epsilon = architecture.options["layer_norm_epsilon"]
        if epsilon != EPSILON:
            raise UserError(
                f"format='timm': model.layer_norm_epsilon={epsilon} must be {EPSILON}, which "
                "norms of timm's ViT add; train with it, or use format=hf"
            )

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        self.check(architecture)
        return timm_config(super().describe(architecture, dtype, text_ids))

    def more_documents(self, architecture: Architecture) -> Mapping[str, Any]:
        del architecture
        return {}

    def with_more(self, folder: storage.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A config of Hugging Face's ViT for one of timm's, with what weights say by their shapes.
        Raises UserError where these are of another model than its architecture is.
        """
        sizes = _sizes_of(config)
        tensors = FolderTensors(folder, self.prefix, _MEND)
        if "dist_token" in tensors.files:
            raise _distilled(config["architecture"])
        if "head.weight" not in tensors.files:
            raise UserError(
                "there is no tensor head.weight, so that the model tells no classes; import one of "
                "num_classes above 0"
            )
        shapes = _Shapes(tensors)
        classes, _ = shapes.of("head.weight", 2)
        d_model, channels, patch_size, _ = shapes.of("patch_embed.proj.weight", 4)
        d_ff, _ = shapes.of("blocks.0.mlp.fc1.weight", 2)
        stored_sizes = {"embed_dim": d_model, "depth": shapes.depth(), "patch_size": patch_size}
        for name, size in stored_sizes.items():
            if sizes[name] != size:
                raise UserError(
                    f"the weights have {name}={size}, and architecture={config['architecture']!r} "
                    f"has {sizes[name]}; if they are right, write model_args with embed_dim, "
                    "depth, num_heads and patch_size into config.json"
                )

        image_size = shapes.side() * patch_size
        return {
            "model_type": "vit",
            "hidden_size": d_model,
            "num_hidden_layers": sizes["depth"],
            "num_attention_heads": sizes["num_heads"],
            "intermediate_size": d_ff,
            "patch_size": patch_size,
            "num_channels": channels,
            "image_size": image_size,
            "hidden_act": _activation_of(config),
            "layer_norm_eps": EPSILON,
            "id2label": {str(i): str(i) for i in range(_checked_classes(config, classes))},
            "matta_jax": _scaling(config, (channels, image_size, image_size))
            | dict(config.get("matta_jax", {})),
        }

    def outer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_OUTER)

    def layer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return dict(_LAYER)


class _Shapes:
    """The shapes of a folder's tensors."""

    def __init__(self, tensors: FolderTensors):
        self._tensors = tensors

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """Of a tensor. Raises UserError where it is missing, or has not so many dimensions."""
        if name not in self._tensors.files:
            raise UserError(f"tensor {name} is missing; {_MEND}")
        shape, _ = self._tensors.about(name)
        if len(shape) != rank:
            raise UserError(f"tensor {name} has shape {shape}, not {rank} dimensions; {_MEND}")
        return shape

    def depth(self) -> int:
        """Blocks that there are weights of."""
        numbers = {name.split(".")[1] for name in self._tensors.files if name.startswith("blocks.")}
        return len(numbers)

    def side(self) -> int:
        """Patches along a side of an image. Raises UserError where positions are not those of a
        class token and a square of patches.
        """
        _, num_positions, _ = self.of("pos_embed", 3)
        side = math.isqrt(max(num_positions - 1, 0))
        if not side or side**2 + 1 != num_positions:
            raise UserError(
                f"pos_embed has {num_positions} positions, and a class token with a square of "
                "patches is supported alone; import a model that has these"
            )
        return side


def _sizes_of(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that an architecture's name and the arguments beside it say. Raises UserError
    where timm builds another kind of model by them.
    """
    name = config["architecture"]
    if not isinstance(name, str) or "distilled" in name:
        raise _distilled(name) if isinstance(name, str) else _unsupported(name)
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in SIZES:
        raise _unsupported(name)

    arguments = config.get("model_args") or {}
    pooling = {"global_pool": config["global_pool"]} if "global_pool" in config else {}
    for argument, value in (pooling | dict(arguments)).items():
        if argument in _PLAIN and value != _PLAIN[argument]:
            raise UserError(
                f"{argument}={shorten(value)} is not supported, only {_PLAIN[argument]}; import "
                "another model"
            )
        if argument not in _PLAIN and not _HARMLESS.fullmatch(argument):
            raise UserError(
                f"model_args.{argument:.60}={shorten(value)} is not supported; import a model "
                "without it"
            )
    stock_sizes = {**SIZES[match[1]], "patch_size": int(match[2])}
    sizes = {size: arguments.get(size, stock) for size, stock in stock_sizes.items()}
    if sizes["embed_dim"] % natural("num_heads", sizes["num_heads"]):
        raise UserError(
            f"num_heads={sizes['num_heads']} of architecture={name!r} must divide embed_dim="
            f"{sizes['embed_dim']}; write both into model_args of config.json"
        )
    return sizes


def _activation_of(config: Mapping[str, Any]) -> str:
    """By Hugging Face's name. Raises UserError for one that is not computed here."""
    activation = (config.get("model_args") or {}).get("act_layer")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"model_args.act_layer={shorten(activation)} is not supported, only "
            f"{listed(name for name in _ACTIVATIONS if name)}; import another model"
        )
    return _ACTIVATIONS[activation]


def _unsupported(name: Any) -> UserError:
    return UserError(
        f"architecture={shorten(name)} is not supported, only timm's vit and deit of sizes "
        f"{listed(SIZES)}, such as vit_tiny_patch16_224; import one of these"
    )


def _distilled(name: str) -> UserError:
    return UserError(
        f"architecture={shorten(name)} has a distillation token (dist_token) beside the class "
        "token, which is not supported; import one without it, such as deit_tiny_patch16_224"
    )


def _checked_classes(config: Mapping[str, Any], classes: int) -> int:
    """Classes of the weights. Raises UserError where the config says another number."""
    stated = config.get("num_classes", config.get("pretrained_cfg", {}).get("num_classes", classes))
    if stated != classes:
        raise UserError(
            f"num_classes={shorten(stated)}, and head.weight has {classes} rows; they are of "
            "different models"
        )
    return classes


def _scaling(config: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    """How pixels are scaled. Raises UserError where the config does not say it, or says it of
    images of another shape [C, H, W].
    """
    # The first configs of timm had it beside the architecture.
    recipe = config.get("pretrained_cfg", config)
    input_size = tuple(recipe.get("input_size", shape))
    if input_size != shape:
        raise UserError(
            f"input_size={shorten(list(input_size))}, and the weights are of images of "
            f"{list(shape)}; they are of different models"
        )
    for name in ("mean", "std"):
        if len(recipe.get(name, ())) != shape[0]:
            raise UserError(
                f"pretrained_cfg.{name}={shorten(recipe.get(name))} must hold a number for each of "
                f"{shape[0]} channels: it says how pixels are scaled; write it into config.json"
            )
    return {"image_mean": list(recipe["mean"]), "image_std": list(recipe["std"])}
