"""The vision transformer (arXiv 2010.11929): pre-norm blocks over the patches of an image.

A model may think more than once (ThinkingViT, arXiv 2507.10800): it runs a narrower pass first, and
starts its own from the patches and what that pass made of them.

Shape letters: B batch, T positions of an image: its class token where there is one, and its P
  patches; N positions of a batch (= B·T), D d_model, C channels, R rows and S columns of a patch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from immutabledict import immutabledict

from matta_jax.config import VitConfig
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._gpt2 import GPT2Block
from matta_jax.models.families._schema import Input, Inputs, Schema
from matta_jax.models.families._scorer import Head
from matta_jax.models.layers import Build, Context, LayerNorm, project
from matta_jax.nesting import BLOCKS, RECYCLED, RESIDUAL, THOUGHTS, Axis, Role, Sizes

# The largest number of a pixel, which is 1 as a model reads it.
_WHITE = 255.0


class Patches(nnx.Module):
    """Embeddings of an image's patches, with learned positions; and the class token."""

    def __init__(self, build: Build):
        self.pooling = build.options["image_pooling"]
        self.mean, self.std = build.options["image_mean"], build.options["image_std"]
        self.w = build.weight("channels", "rows", "columns", "d_model")
        self.b = build.weight("d_model")
        self.positions = build.weight("positions", "d_model")
        if self.pooling == "cls":
            self.token = build.weight("d_model")

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """Returns the embedded positions [B, T, D] of pixels from 0 to 255."""
        scaled = image_BHWC.astype(jnp.float32) / _WHITE - jnp.array(self.mean)
        scaled = scaled / jnp.array(self.std)
        weight = self.w[...]
        patches_BPCRS = _patches(scaled, weight.shape[1]).astype(weight.dtype)
        batch_size, num_patches = patches_BPCRS.shape[:2]
        x_ND = project("ncrs,crsd->nd", patches_BPCRS.reshape(-1, *weight.shape[:3]), weight)
        x_BTD = (x_ND + self.b[...]).reshape(batch_size, num_patches, -1)
        if self.pooling == "cls":
            token_B1D = jnp.broadcast_to(self.token[...], (batch_size, 1, x_BTD.shape[-1]))
            x_BTD = jnp.concatenate([token_B1D.astype(x_BTD.dtype), x_BTD], axis=1)
        return x_BTD + self.positions[...]


class Recycle(nnx.Module):
    """What each earlier pass adds to the embedded positions of the next; nothing at first."""

    def __init__(self, build: Build):
        self.w = build.weight("thoughts", "recycled", "d_model")
        self.b = build.weight("thoughts", "d_model")
        self.alpha = build.weight("thoughts")

    def __call__(self, earlier_ND: jax.Array) -> jax.Array:
        """Returns what is added [N, D'] of the last earlier pass's normed positions [N, D]."""
        # Its entry is the last; those before it join the passes before that one.
        w_RD = self.w[...][-1, : earlier_ND.shape[1]]
        recycled_ND = project("nr,rd->nd", earlier_ND, w_RD) + self.b[...][-1]
        return self.alpha[...][-1] * recycled_ND


def _patches(image_BHWC: jax.Array, size: int) -> jax.Array:
    """The patches [B, P, C, R, S] of images, row by row."""
    batch_size, height, width, channels = image_BHWC.shape
    tiles = image_BHWC.reshape(
        batch_size, height // size, size, width // size, size, channels
    ).transpose(0, 1, 3, 5, 2, 4)
    return tiles.reshape(batch_size, -1, channels, size, size)


class Vit(Family):
    """The family of vision transformers."""

    name = "vit"
    section = VitConfig
    modules = {  # noqa: RUF012
        "embed": Patches,
        BLOCKS: GPT2Block,
        "norm": LayerNorm,
        "head": Head,
        "recycle": Recycle,
    }
    exits = ("norm", "head")
    joints = ("recycle",)
    table = None
    is_causal = False
    usage = "logits = matta_jax.classify(model, images)  # uint8 [n, H, W, C]; float32 [n, classes]"
    own_axes = (
        Axis("channels", Role.FEATURES, fields="model.num_channels"),
        # Within a patch.
        Axis("rows", Role.FIXED, fields="model.patch_size"),
        Axis("columns", Role.FIXED, fields="model.patch_size"),
    )

    def fixed_sizes(self, model: Any) -> dict[str, int]:
        # Of the widest earlier pass.
        recycled = max((sizes[RESIDUAL] for sizes in model.earlier_sizes()), default=0)
        return ({RECYCLED: recycled} if recycled else {}) | {
            "channels": model.num_channels,
            "rows": model.patch_size,
            "columns": model.patch_size,
            "positions": model.num_positions,
            "classes": model.image_classes,
            "head_dim": model.head_width,
            "qkv": 3,
        }

    def options(self, model: Any, layers: Sequence[int]) -> Mapping[str, Any]:
        del layers
        thinking = {}
        if model.thinking_heads:
            earlier = model.earlier_sizes()
            thinking["thinking_heads"] = model.thinking_heads
            thinking["thinking_d_model"] = tuple(sizes[RESIDUAL] for sizes in earlier)
            thinking["thinking_d_ff"] = tuple(sizes["d_ff"] for sizes in earlier)
        return immutabledict(
            image_size=model.image_size,
            image_pooling=model.image_pooling,
            activation=model.activation,
            layer_norm_epsilon=model.layer_norm_epsilon,
            image_mean=model.image_mean,
            image_std=model.image_std,
            **thinking,
        )

    def fields_of(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return immutabledict(options)

    def has(self, module: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> bool:
        del options
        return module != "recycle" or sizes.get(THOUGHTS, 0) > 0

    def earlier(self, sizes: Sizes, options: Mapping[str, Any]) -> Sizes | None:
        thoughts = sizes.get(THOUGHTS, 0)
        if not thoughts:
            return None
        # What a model has not it cannot run with: its earlier passes are no wider than it is.
        number = thoughts - 1
        limits = {
            "heads": options["thinking_heads"][number],
            RESIDUAL: options["thinking_d_model"][number],
            "d_ff": options["thinking_d_ff"][number],
        }
        earlier = {axis: min(size, limits.get(axis, size)) for axis, size in sizes.items()}
        return immutabledict(earlier | {THOUGHTS: number})

    def join(
        self, modules: Modules, x_ND: jax.Array, earlier_modules: Modules, earlier_ND: jax.Array
    ) -> jax.Array:
        normed_ND = earlier_modules["norm"](earlier_ND)
        return x_ND + modules["recycle"](normed_ND)

    def schema(self, model: Any) -> Schema:
        shape = (model.image_size, model.image_size, model.num_channels)
        return Schema({"image": Input(shape, "uint8", limit=256)}, kind="examples")

    def enter(
        self,
        modules: Modules,
        inputs: Inputs,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        x_BTD = modules["embed"](inputs["image"])
        batch_size, num_positions, _ = x_BTD.shape
        seen_BT = jnp.ones((batch_size, num_positions), bool)
        is_cls = modules["embed"].pooling == "cls"
        read_BT = seen_BT & (jnp.arange(num_positions) == 0) if is_cls else seen_BT
        return x_BTD.reshape(batch_size * num_positions, -1), Context(
            num_positions, seen_BT, read_BS=read_BT
        )

    def leave(
        self, modules: Modules, x_ND: jax.Array, context: Context, sizes: Mapping[str, int]
    ) -> jax.Array:
        assert context.read_BS is not None
        return modules["head"](modules["norm"](x_ND), context.read_BS)


register(Vit())
