"""The config.json of a ViT as timm's hub writes it."""

import math
from collections.abc import Mapping
from typing import Any

from matta_jax.packages.hf._vit import of_channels

EPSILON = 1e-6
"""What all norms of timm's ViT add to the variance; no config says another."""
SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""What timm builds by these words in a name."""
# Those of its names, by patches and sides of images; others are arguments beside the first.
_NAMES = {
    "tiny": ((16, 224), (16, 384)),
    "small": ((16, 224), (16, 384), (32, 224), (32, 384), (8, 224)),
    "base": ((16, 224), (16, 384), (32, 224), (32, 384), (8, 224)),
    "large": ((16, 224), (16, 384), (32, 224), (32, 384), (14, 224)),
    "huge": ((14, 224),),
}
_STOCK = {"mlp_ratio": 4.0, "in_chans": 3, "act_layer": "gelu"}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def timm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's config.json of a model, by its name where timm has its sizes, else by arguments beside
    the name of a smaller one.

    Args:
      config: of the model as Hugging Face's ViT.
    """
    embed_dim, side = config["hidden_size"], config["image_size"]
    channels, classes = config["num_channels"], len(config["id2label"])
    facts = config["matta_jax"]
    sizes = {
        "embed_dim": embed_dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
    }
    word = next((word for word, stock in SIZES.items() if stock == sizes), "tiny")
    grid = (config["patch_size"], side)
    patch_size, image_size = grid if grid in _NAMES[word] else _NAMES[word][0]
    stock = SIZES[word] | _STOCK | {"patch_size": patch_size, "img_size": image_size}
    arguments = sizes | {
        "patch_size": config["patch_size"],
        "img_size": side,
        "mlp_ratio": mlp_ratio(config["intermediate_size"], embed_dim),
        "in_chans": channels,
        "act_layer": _ACTIVATIONS[config["hidden_act"]],
    }
    changed = {name: value for name, value in arguments.items() if value != stock[name]}
    return {
        "architecture": f"vit_{word}_patch{patch_size}_{image_size}",
        "num_classes": classes,
        "num_features": embed_dim,
        "global_pool": "token",
        **({"model_args": changed} if changed else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": of_channels(facts["image_mean"], channels),
            "std": of_channels(facts["image_std"], channels),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "matta_jax": facts,
    }


def mlp_ratio(d_ff: int, d_model: int) -> float:
    """The ratio of which timm makes this d_ff, which it rounds down."""
    ratio = d_ff / d_model
    return ratio if int(d_model * ratio) == d_ff else math.nextafter(ratio, math.inf)
