"""The scorer: the GPT's blocks as an encoder, with a sigmoid or softmax head (the paper's
Relevance, Quality models).

Every position sees all others. Dense and categorical features become one more position, before the
text: each block's MLP works on them, attention mixes them with the text, and they are nested as
everything else is, by width, depth and d_model. The head reads the mean over positions; without a
text that is the features' own, and the blocks are an MLP.

Shape letters: B batch, T tokens, S positions (T, or T + 1 with features), D d_model, N positions of
a batch (= B·S),
  F dense features, C categorical features.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models._gpt import GPT, Architecture, weight

Extras = Mapping[str, jax.Array]
"""Of a scorer's batch, beside its tokens: `length` [B], `dense` [B, F] and `categorical` [B, C]
where it has them.
"""


class Dense(nnx.Module):
    """Dense features, as a vector of the residual stream."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs):
        self.w = weight(rngs, sizes, "dense", "d_model")
        self.b = weight(rngs, sizes, "d_model")

    def __call__(self, dense_BF: jax.Array) -> jax.Array:
        return dense_BF.astype(self.w[...].dtype) @ self.w[...] + self.b[...]


class Categories(nnx.Module):
    """Categorical features: a row of one table for each value, added up."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs):
        self.table = weight(rngs, sizes, "categories", "d_model")

    def __call__(self, categorical_BC: jax.Array) -> jax.Array:
        return self.table[...][categorical_BC].sum(axis=1)


class Head(nnx.Module):
    """Logits of the classes, from the mean over the positions that count."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs):
        self.w = weight(rngs, sizes, "d_model", "classes")
        self.b = weight(rngs, sizes, "classes")

    def __call__(self, x_ND: jax.Array, seen_BS: jax.Array) -> jax.Array:
        """Returns float32 logits [B, classes]; of one class (a sigmoid) [B]."""
        x_BSD = x_ND.reshape(*seen_BS.shape, -1)
        counted_BS1 = seen_BS[..., None].astype(jnp.float32)
        mean_BD = (x_BSD * counted_BS1).sum(1) / counted_BS1.sum(1)
        logits = jnp.einsum("bd,dc->bc", mean_BD, self.w[...].astype(jnp.float32)) + self.b[
            ...
        ].astype(jnp.float32)
        return logits[:, 0] if logits.shape[1] == 1 else logits


class Scorer(GPT):
    """A plain scorer."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        super().__init__(architecture, rngs)
        sizes = {
            "d_model": architecture.d_model,
            "classes": architecture.num_classes,
            "dense": architecture.num_dense,
            "categories": sum(architecture.categories),
        }
        self.head = Head(sizes, rngs)
        if architecture.num_dense:
            self.dense = Dense(sizes, rngs)
        if architecture.categories:
            self.categories = Categories(sizes, rngs)


def seen_positions(extras: Extras, seq_len: int, *, has_features: bool) -> jax.Array:
    """Which positions [B, S] of a batch count: the features, and the tokens of the text, at least
    one.
    """
    seen_BT = jnp.arange(seq_len) < jnp.maximum(extras["length"], 1)[:, None]
    if not has_features:
        return seen_BT
    seen_BT &= (extras["length"] > 0)[:, None]  # The features stand in for an empty text.
    return jnp.concatenate([jnp.ones_like(seen_BT[:, :1]), seen_BT], axis=1)


def with_features(x_ND: jax.Array, features_BD: jax.Array | None, seq_len: int) -> jax.Array:
    """Puts the features before the embedded tokens of each row; returns [B·S, D]."""
    if features_BD is None:
        return x_ND
    x_BTD = x_ND.reshape(-1, seq_len, x_ND.shape[-1])
    return jnp.concatenate([features_BD[:, None].astype(x_BTD.dtype), x_BTD], axis=1).reshape(
        -1, x_ND.shape[-1]
    )
