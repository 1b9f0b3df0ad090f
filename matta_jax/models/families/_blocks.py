"""Transformer blocks: attention and a feed-forward layer, each a branch of the residual stream.

Shape letters: N tokens (= B·T), D d_model, K granules, H heads or groups of a granule, G granules,
  F neurons of a granule.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import nnx

from matta_jax.models.layers import Cache, Context, drop


class PreNormBlock(nnx.Module):
    """A block whose branches read the normed residual stream. A family's has the modules
    `norm_attention`, `attention`, `norm_mlp`, `mlp`, and where branches are normed once more
    `norm_attended` and `norm_fed`.

    Attributes:
      heads: the axis of its attention's heads, or of its groups of heads.
    """

    parts: ClassVar[Mapping[str, Sequence[str]]] = {
        "attend": ("norm_attention", "attention"),
        "feed": ("norm_mlp", "mlp"),
    }
    heads: ClassVar[str] = "heads"

    # Of each family's own kind.
    norm_attention: Any
    attention: Any
    norm_mlp: Any
    mlp: Any

    def _before(self, norm: str, x_ND: jax.Array) -> jax.Array:
        """What a branch reads of the residual stream."""
        return getattr(self, norm)(x_ND)

    def _after(self, norm: str, branch_ND: jax.Array) -> jax.Array:
        return getattr(self, norm)(branch_ND) if hasattr(self, norm) else branch_ND

    def _added(self, norm: str, x_ND: jax.Array, branch_ND: jax.Array) -> jax.Array:
        """The residual stream after a branch, of whose norm the name is given."""
        del norm
        return x_ND + branch_ND

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
        attended = self.attention(self._before("norm_attention", x_ND), context)
        branch_ND = drop(self._after("norm_attended", attended), dropout, key)
        return self._added("norm_attention", x_ND, branch_ND)

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
        fed = self.mlp(self._before("norm_mlp", x_ND))
        branch_ND = drop(self._after("norm_fed", fed), dropout, key)
        return self._added("norm_mlp", x_ND, branch_ND)

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
        read_ND = self._before("norm_attention", x_ND)
        attended, cache = self.attention.extend(read_ND, context, cache)
        branch_ND = self._after("norm_attended", attended)
        return self.feed(self._added("norm_attention", x_ND, branch_ND)), cache

    def importance(self, x_ND: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns how much each head or group [K, H] and each neuron [G, F] adds to the residual
        stream; a norm after the branch scales all of them alike.
        """
        heads = self.attention.importance(self._before("norm_attention", x_ND), context)
        # The MLP reads what attention has written.
        x_ND = self.attend(x_ND, context)
        neurons = self.mlp.importance(self._before("norm_mlp", x_ND))
        return {self.heads: heads, "d_ff": neurons}


class PostNormBlock(PreNormBlock):
    """A block whose branches read the residual stream as it is; each sum is normed."""

    def _before(self, norm: str, x_ND: jax.Array) -> jax.Array:
        del norm
        return x_ND

    def _added(self, norm: str, x_ND: jax.Array, branch_ND: jax.Array) -> jax.Array:
        return getattr(self, norm)(x_ND + branch_ND)
