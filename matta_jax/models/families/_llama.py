"""Llama-like decoders: Llama 3, SmolLM2, Qwen 2.5, Qwen 3 and Gemma 3 by their config.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from immutabledict import immutabledict

from matta_jax.config import LlamaConfig
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._schema import Input, Inputs, Schema
from matta_jax.models.layers import (
    Build,
    Cache,
    Context,
    GatedMLP,
    GroupedAttention,
    RMSNorm,
    drop,
)
from matta_jax.nesting import BLOCKS


class LlamaEmbed(nnx.Module):
    """Token embeddings; positions are turned into queries and keys."""

    def __init__(self, build: Build):
        self.scale = build.options["embed_scale"]
        self.tokens = build.weight("vocab", "d_model")

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Returns the embedded tokens [B·T, D]."""
        x_BTD = self.tokens[...][tokens_BT] * self.scale
        return x_BTD.reshape(-1, x_BTD.shape[-1])


class Head(nnx.Module):
    """A table of its own, that hidden states are compared with."""

    def __init__(self, build: Build):
        self.table = build.weight("vocab", "d_model")


class LlamaBlock(nnx.Module):
    """A transformer block with a norm before each branch, or before and after."""

    parts = {  # noqa: RUF012  As of `Block`.
        "attend": ("norm_attention", "attention", "norm_attended"),
        "feed": ("norm_mlp", "mlp", "norm_fed"),
    }

    def __init__(self, build: Build):
        self.norm_attention = RMSNorm(build)
        self.attention = GroupedAttention(build)
        self.norm_mlp = RMSNorm(build)
        self.mlp = GatedMLP(build)
        if build.options["post_norms"]:
            self.norm_attended = RMSNorm(build)
            self.norm_fed = RMSNorm(build)

    def _after(self, norm: str, branch_ND: jax.Array) -> jax.Array:
        return getattr(self, norm)(branch_ND) if hasattr(self, norm) else branch_ND

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
        return x_ND + drop(self._after("norm_attended", attended), dropout, key)

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
        return x_ND + drop(self._after("norm_fed", fed), dropout, key)

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
        self, x_ND: jax.Array, context: Context, cache: Cache | None
    ) -> tuple[jax.Array, Cache]:
        """Runs new tokens after those that are cached; returns the residual stream and the longer
        cache.
        """
        attended, cache = self.attention.extend(self.norm_attention(x_ND), context, cache)
        return self.feed(x_ND + self._after("norm_attended", attended)), cache

    def importance(self, x_ND: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns how much each group [K, H] and each neuron [G, F] adds to the residual stream; a
        norm after the branch scales all of them alike.
        """
        groups = self.attention.importance(self.norm_attention(x_ND), context)
        # The MLP reads what attention has written.
        x_ND = self.attend(x_ND, context)
        neurons = self.mlp.importance(self.norm_mlp(x_ND))
        return {"kv_heads": groups, "d_ff": neurons}


class Llama(Family):
    """The family of Llama-like decoders."""

    name = "llama"
    section = LlamaConfig
    modules = {"embed": LlamaEmbed, BLOCKS: LlamaBlock, "norm": RMSNorm, "head": Head}  # noqa: RUF012
    exits = ("norm", "head")
    table = "embed/tokens"
    heads = "kv_heads"

    def fixed_sizes(self, model: Any) -> dict[str, int]:
        return {
            "vocab": model.vocab_size,
            "head_dim": model.head_width,
            "queries": model.queries,
            "kv": 2,
            "gate": 2,
        }

    def options(self, model: Any, layers: Sequence[int]) -> Mapping[str, Any]:
        return immutabledict(
            rotary=(model.rope_theta, model.rope_type, tuple(sorted(model.rope_scaling.items()))),
            local_rotary=(model.local_rope_theta, "default", ()),
            qk_norm=model.qk_norm,
            qkv_bias=model.qkv_bias,
            query_scale=model.query_scale,
            gate=model.gate,
            tie_embeddings=model.tie_embeddings,
            norm_epsilon=model.norm_epsilon,
            norm_offset=model.norm_offset,
            post_norms=model.post_norms,
            embed_scale=model.embed_scale,
            window=model.window,
            local_layers=model.local_layers(layers),
        )

    def fields_of(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        local_layers = options["local_layers"]
        if not local_layers:
            return {}
        global_layers = [i for i, is_local in enumerate(local_layers) if not is_local]
        return {"window_pattern": 0, "global_layers": tuple(global_layers)}

    def has(self, module: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> bool:
        return module != "head" or not options["tie_embeddings"]

    def table_path(self, options: Mapping[str, Any]) -> str | None:
        return self.table if options["tie_embeddings"] else "head/table"

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
        return modules["embed"](tokens_BT), Context(tokens_BT.shape[1], start=start)

    def leave(self, modules: Modules, x_ND: jax.Array, context: Context) -> jax.Array:
        return modules["norm"](x_ND)


register(Llama())
