"""GPT-2: pre-norm blocks, learned positions, a head that is tied to the token table.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model.
"""

from typing import Any

import jax
from flax import nnx

from matta_jax.config import ModelConfig
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._schema import Input, Inputs, Schema
from matta_jax.models.layers import MLP, Attention, Build, Cache, Context, LayerNorm, drop
from matta_jax.nesting import BLOCKS


class Embed(nnx.Module):
    """Token and learned position embeddings."""

    def __init__(self, build: Build):
        self.tokens = build.weight("vocab", "d_model")
        self.positions = build.weight("positions", "d_model")

    def __call__(self, tokens_BT: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """Returns the embedded tokens [B·T, D], whose rows start at these positions."""
        seq_len = tokens_BT.shape[1]
        if start is None:
            positions = self.positions[...][:seq_len]
        else:
            positions = self.positions[...][Context(seq_len, start=start).positions]
        # Positions are [T, D], or [B, T, D] where rows start at different ones.
        x_BTD = self.tokens[...][tokens_BT] + positions
        return x_BTD.reshape(-1, x_BTD.shape[-1])


class GPT2Block(nnx.Module):
    """A pre-norm transformer block."""

    parts = {  # noqa: RUF012  As of `Block`.
        "attend": ("norm_attention", "attention"),
        "feed": ("norm_mlp", "mlp"),
    }

    def __init__(self, build: Build):
        self.norm_attention = LayerNorm(build)
        self.attention = Attention(build)
        self.norm_mlp = LayerNorm(build)
        self.mlp = MLP(build)

    def attend(
        self,
        x_ND: jax.Array,
        context: Context,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the residual stream after attention."""
        # Each part takes its half of the layer's key, so that parts that run one by one drop what
        # `__call__` would.
        key = None if key is None else jax.random.split(key)[0]
        attended = self.attention(self.norm_attention(x_ND), context)
        return x_ND + drop(attended, dropout, key)

    def feed(
        self,
        x_ND: jax.Array,
        context: Context | None = None,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the residual stream after the MLP, of that after attention."""
        key = None if key is None else jax.random.split(key)[1]
        fed = self.mlp(self.norm_mlp(x_ND))
        return x_ND + drop(fed, dropout, key)

    def __call__(
        self,
        x_ND: jax.Array,
        context: Context,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the new residual stream. Without a `key` nothing is dropped."""
        x_ND = self.attend(x_ND, context, dropout=dropout, key=key)
        return self.feed(x_ND, context, dropout=dropout, key=key)

    def extend(
        self,
        x_ND: jax.Array,
        context: Context,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache]:
        """Runs new tokens after those that are cached; returns the residual stream and the longer
        cache.
        """
        attended, cache = self.attention.extend(self.norm_attention(x_ND), context, cache)
        return self.feed(x_ND + attended), cache

    def importance(self, x_ND: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns how much each head [K, H] and each neuron [G, F] adds to the residual stream."""
        heads = self.attention.importance(self.norm_attention(x_ND), context)
        # The MLP reads what attention has written.
        x_ND = self.attend(x_ND, context)
        neurons = self.mlp.importance(self.norm_mlp(x_ND))
        return {"heads": heads, "d_ff": neurons}


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
        tokens_BT = inputs["tokens"]
        context = Context(tokens_BT.shape[1], start=start)
        return modules["embed"](tokens_BT, start), context

    def leave(self, modules: Modules, x_ND: jax.Array, context: Context) -> jax.Array:
        return modules["norm"](x_ND)


register(GPT2())
