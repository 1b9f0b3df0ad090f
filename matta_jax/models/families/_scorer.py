"""The scorer: the GPT's blocks as an encoder, with a sigmoid or softmax head (the paper's
Relevance and Quality models).

Every position sees all others. Dense and categorical features become one more position, before the
text: each block's MLP works on them, attention mixes them with the text, and they are nested as
everything else is, by width, depth and d_model. The head reads the mean over positions; without a
text that is the features' own, and the blocks are an MLP.

Shape letters: B batch, T tokens, S positions (T, or T + 1 with features), D d_model, N positions of
  a batch (= B·S), F dense features, C categorical features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from immutabledict import immutabledict

from matta_jax.config import ScorerConfig
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._gpt2 import GPT2, Embed, GPT2Block
from matta_jax.models.families._schema import Input, Inputs, Schema
from matta_jax.models.layers import Build, Context, LayerNorm
from matta_jax.nesting import BLOCKS


class Dense(nnx.Module):
    """Dense features, as a vector of the residual stream."""

    def __init__(self, build: Build):
        self.w = build.weight("dense", "d_model")
        self.b = build.weight("d_model")

    def __call__(self, dense_BF: jax.Array) -> jax.Array:
        # Features are float32 in a batch, whatever type a pass computes in.
        features = dense_BF.astype(self.w[...].dtype)
        return features @ self.w[...] + self.b[...]


class Categories(nnx.Module):
    """Categorical features: a row of one table for each value, added up."""

    def __init__(self, build: Build):
        self.table = build.weight("categories", "d_model")

    def __call__(self, categorical_BC: jax.Array) -> jax.Array:
        # [B, C, D], summed over C: each feature has rows of its own in the table.
        return self.table[...][categorical_BC].sum(axis=1)


class Head(nnx.Module):
    """Logits of the classes, from the mean over the positions that count."""

    def __init__(self, build: Build):
        self.w = build.weight("d_model", "classes")
        self.b = build.weight("classes")

    def __call__(self, x_ND: jax.Array, seen_BS: jax.Array) -> jax.Array:
        """Returns float32 logits [B, classes]; of one class (a sigmoid) [B]."""
        x_BSD = x_ND.reshape(*seen_BS.shape, -1)
        # In float32 from here: a mean over many positions, and logits that losses exponentiate.
        counted_BS1 = seen_BS[..., None].astype(jnp.float32)
        mean_BD = (x_BSD * counted_BS1).sum(1) / counted_BS1.sum(1)

        weights = self.w[...].astype(jnp.float32)
        products = jnp.einsum("bd,dc->bc", mean_BD, weights)
        logits = products + self.b[...].astype(jnp.float32)
        return logits[:, 0] if logits.shape[1] == 1 else logits


class Scorer(Family):
    """The family of scorers."""

    name = "scorer"
    section = ScorerConfig
    modules = {  # noqa: RUF012
        "embed": Embed,
        BLOCKS: GPT2Block,
        "norm": LayerNorm,
        "head": Head,
        "dense": Dense,
        "categories": Categories,
    }
    exits = ("norm", "head")
    table = None
    is_causal = False
    usage = "logits = model.apply(model.params, inputs)  # tokens [B, T], length [B]; features"

    def fixed_sizes(self, model: Any) -> dict[str, int]:
        return GPT2().fixed_sizes(model) | {
            "classes": model.num_classes,
            "dense": model.num_dense,
            "categories": sum(model.categories),
        }

    def options(self, model: Any, layers: Sequence[int]) -> Mapping[str, Any]:
        del layers
        return immutabledict(categories=model.categories)

    def has(self, module: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> bool:
        del options
        # These two are named as the axis that they read, which may have no entries.
        return module not in ("dense", "categories") or sizes[module] > 0

    def schema(self, model: Any) -> Schema:
        tokens = Input((None,), "int32", entries="vocab", limit=model.vocab_size)
        inputs = {"tokens": tokens, "length": Input((), "int32")}
        if model.num_dense:
            inputs["dense"] = Input((model.num_dense,), "float32")
        if model.categories:
            # All features choose rows of one table, each in a range of its own.
            num_rows = sum(model.categories)
            inputs["categorical"] = Input((len(model.categories),), "int32", "categories", num_rows)
        return Schema(inputs, kind="examples" if model.reads_examples else "windows")

    def enter(
        self,
        modules: Modules,
        inputs: Inputs,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        tokens_BT = inputs["tokens"]
        features_BD = _features(modules, inputs)
        seen_BS = _seen_positions(inputs, has_features=features_BD is not None)

        x_ND = modules["embed"](tokens_BT, Context(tokens_BT.shape[1]))
        if features_BD is not None:
            x_BTD = x_ND.reshape(*tokens_BT.shape, -1)
            first_B1D = features_BD[:, None].astype(x_BTD.dtype)
            # The features' position comes first in each row, as in `seen_BS`.
            x_BSD = jnp.concatenate([first_B1D, x_BTD], axis=1)
            x_ND = x_BSD.reshape(-1, x_ND.shape[-1])
        return x_ND, Context(seen_BS.shape[1], seen_BS)

    def leave(
        self, modules: Modules, x_ND: jax.Array, context: Context, sizes: Mapping[str, int]
    ) -> jax.Array:
        assert context.seen_BS is not None
        return modules["head"](modules["norm"](x_ND), context.seen_BS)


def _features(modules: Modules, inputs: Inputs) -> jax.Array | None:
    """Dense and categorical features as one vector [B, D] of the residual stream, where there are
    any.
    """
    features_BD = None
    if "dense" in modules:
        features_BD = modules["dense"](inputs["dense"])
    if "categories" in modules:
        categories_BD = modules["categories"](inputs["categorical"])
        features_BD = categories_BD if features_BD is None else features_BD + categories_BD
    return features_BD


def _seen_positions(inputs: Inputs, *, has_features: bool) -> jax.Array:
    """Which positions [B, S] of a batch count: the features, and the tokens of the text, at least
    one.
    """
    length_B1 = inputs["length"][:, None]
    # A softmax over no position, or their mean, would be no number.
    seen_BT = jnp.arange(inputs["tokens"].shape[1]) < jnp.maximum(length_B1, 1)
    if not has_features:
        return seen_BT
    # The features stand in for an empty text.
    seen_BT &= length_B1 > 0
    return jnp.concatenate([jnp.ones_like(seen_BT[:, :1]), seen_BT], axis=1)


register(Scorer())
