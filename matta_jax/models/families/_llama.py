"""Llama-like decoders: Llama 3, SmolLM2, Qwen 2.5, Qwen 3 and Gemma 3 by their config.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import nnx
from immutabledict import immutabledict

from matta_jax.config import LlamaConfig
from matta_jax.models.families._blocks import PreNormBlock
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._schema import Input, Inputs, Schema, context_of
from matta_jax.models.layers import (
    Build,
    Context,
    GatedMLP,
    GroupedAttention,
    RMSNorm,
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


class LlamaBlock(PreNormBlock):
    """A transformer block with a norm before each branch, or before and after."""

    parts: ClassVar[Mapping[str, Sequence[str]]] = {
        "attend": ("norm_attention", "attention", "norm_attended"),
        "feed": ("norm_mlp", "mlp", "norm_fed"),
    }
    heads = "kv_heads"

    def __init__(self, build: Build):
        self.norm_attention = RMSNorm(build)
        self.attention = GroupedAttention(build)
        self.norm_mlp = RMSNorm(build)
        self.mlp = GatedMLP(build)
        if build.options["post_norms"]:
            self.norm_attended = RMSNorm(build)
            self.norm_fed = RMSNorm(build)


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
        context = context_of(inputs, start)
        return modules["embed"](inputs["tokens"]), context

    def leave(
        self, modules: Modules, x_ND: jax.Array, context: Context, sizes: Mapping[str, int]
    ) -> jax.Array:
        return modules["norm"](x_ND)


register(Llama())
