"""GPT-2: pre-norm blocks, learned positions, a head that is tied to the token table.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from matta_jax.config import ModelConfig
from matta_jax.models.families._blocks import PreNormBlock
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._schema import Input, Inputs, Schema, context_of
from matta_jax.models.layers import MLP, Attention, Build, Context, LayerNorm
from matta_jax.nesting import BLOCKS


class Embed(nnx.Module):
    """Token and learned position embeddings."""

    def __init__(self, build: Build):
        self.tokens = build.weight("vocab", "d_model")
        self.positions = build.weight("positions", "d_model")

    def __call__(self, tokens_BT: jax.Array, context: Context) -> jax.Array:
        """Returns the embedded tokens [B·T, D]."""
        if context.is_in_order:
            positions = self.positions[...][: context.seq_len]
        else:
            positions = self.positions[...][context.positions]
        # Positions are [T, D], or [B, T, D] where rows have different ones.
        x_BTD = self.tokens[...][tokens_BT] + positions
        return x_BTD.reshape(-1, x_BTD.shape[-1])


class GPT2Block(PreNormBlock):
    """GPT-2's transformer block."""

    def __init__(self, build: Build):
        self.norm_attention = LayerNorm(build)
        self.attention = Attention(build)
        self.norm_mlp = LayerNorm(build)
        self.mlp = MLP(build)


class GPT2(Family):
    """The family of GPT-2."""

    name = "gpt"
    section = ModelConfig
    modules = {"embed": Embed, BLOCKS: GPT2Block, "norm": LayerNorm}  # noqa: RUF012
    exits = ("norm",)
    table = "embed/tokens"

    def fixed_sizes(self, model: Any) -> dict[str, int]:
        return {
            "vocab": model.vocab_size,
            "positions": model.max_len,
            "head_dim": model.head_width,
            "qkv": 3,
        }

    def schema(self, model: Any) -> Schema:
        tokens = Input((None,), "int32", entries="vocab", limit=model.vocab_size)
        return Schema({"tokens": tokens})

    def enter(
        self,
        modules: Modules,
        inputs: Inputs,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        context = context_of(inputs, start)
        return modules["embed"](inputs["tokens"], context), context

    def leave(
        self, modules: Modules, x_ND: jax.Array, context: Context, sizes: Mapping[str, int]
    ) -> jax.Array:
        return modules["norm"](x_ND)


register(GPT2())
