"""Attention with rotary positions, whose keys and values several queries share.

Shape letters: B batch, T positions, N tokens (= B·T), D d_model, K granules, H groups of a granule,
  Q queries of a group, E head_dim, C k and v.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models.layers._attention import Cache, attend, extend_cache
from matta_jax.models.layers._build import Build
from matta_jax.models.layers._context import Context, Window
from matta_jax.models.layers._kept import QKV, checkpoint_name
from matta_jax.models.layers._linear import project
from matta_jax.models.layers._norms import RMSNorm
from matta_jax.models.layers._rotary import Rotary, rotate


class GroupedAttention(nnx.Module):
    """Grouped-query attention: a group is one head of keys and values with its queries, and what a
    nest slices.

    Options of its build: `rotary` and `local_rotary` (fields of `Rotary`), `qk_norm`, `qkv_bias`,
    `query_scale` (of scores; None: head_dim^-1/2), `window` and `local_layers` (which layers it
    binds; empty: none).
    """

    def __init__(self, build: Build):
        options = build.options
        self.rotary = Rotary(*options["rotary"])
        self.local_rotary = Rotary(*options["local_rotary"])
        self.query_scale = options["query_scale"]
        self.window, self.local_layers = options["window"], options["local_layers"]

        # Granules first: a prefix of them is one piece of memory, and no device's shard is cut.
        groups, queries = "kv_heads_granules", ("kv_heads", "queries", "head_dim")
        keys = ("kv", "kv_heads", "head_dim")
        self.w_q = build.weight(groups, "d_model", *queries)
        self.w_kv = build.weight(groups, "d_model", *keys)
        if options["qkv_bias"]:
            self.b_q = build.weight(groups, *queries)
            self.b_kv = build.weight(groups, *keys)
        if options["qk_norm"]:
            self.q_norm = RMSNorm(build, "head_dim")
            self.k_norm = RMSNorm(build, "head_dim")
        self.w_out = build.weight(groups, *queries, "d_model", scale=build.residual_scale)

    def _heads(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries [B, K, H, Q, T, E], keys and values [B, K, H, T, E]."""
        q_NKHQE = checkpoint_name(project("nd,kdhqe->nkhqe", x_ND, self.w_q[...]), QKV)
        kv_NKCHE = checkpoint_name(project("nd,kdche->nkche", x_ND, self.w_kv[...]), QKV)
        if hasattr(self, "b_q"):
            q_NKHQE = q_NKHQE + self.b_q[...]
            kv_NKCHE = kv_NKCHE + self.b_kv[...]

        q = _tokens_inside(q_NKHQE, context.seq_len)
        # The gradient of a split is put together; that of slices would be added up.
        k_part, v_part = jax.lax.split(kv_NKCHE, (1, 1), axis=2)
        k = _tokens_inside(k_part[:, :, 0], context.seq_len)
        v = _tokens_inside(v_part[:, :, 0], context.seq_len)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)

        head_dim = q.shape[-1]
        cos, sin = self._turns(head_dim, context)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.query_scale is not None:
            # Attention itself divides by the root of head_dim.
            q = q * (self.query_scale * head_dim**0.5)
        return q, k, v

    def _is_local(self, context: Context) -> jax.Array | None:
        """Whether this layer is bound by the window; None where no layer is."""
        if not any(self.local_layers):
            return None
        assert context.layer is not None, "layers of two kinds are told apart by their index"
        return jnp.array(self.local_layers)[context.layer]

    def _turns(self, head_dim: int, context: Context) -> tuple[jax.Array, jax.Array]:
        cos, sin = self.rotary.turns(head_dim, context)
        is_local = self._is_local(context)
        if is_local is None or self.local_rotary == self.rotary:
            return cos, sin
        local_cos, local_sin = self.local_rotary.turns(head_dim, context)
        return jnp.where(is_local, local_cos, cos), jnp.where(is_local, local_sin, sin)

    def _window(self, context: Context) -> Window | None:
        is_local = self._is_local(context)
        return None if is_local is None else Window(self.window, is_local)

    def gather(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Returns what each query has gathered [N, K, H, Q, E]."""
        q, k, v = self._heads(x_ND, context)
        gathered_NKHQE = attend(q, k, v, context, self._window(context))
        # From float32, which the sums of the softmax are in.
        return gathered_NKHQE.astype(x_ND.dtype)

    def _out(self, gathered_NKHQE: jax.Array) -> jax.Array:
        weight = self.w_out[...]
        # One axis F to sum over (= H·Q·E), not three that XLA would turn.
        num_granules, d_model = weight.shape[0], weight.shape[-1]
        w_KFD = weight.reshape(num_granules, -1, d_model)
        gathered_NKF = gathered_NKHQE.reshape(*gathered_NKHQE.shape[:2], -1)
        return project("nkf,kfd->nd", gathered_NKF, w_KFD)

    def __call__(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Attends over sequences."""
        return self._out(self.gather(x_ND, context))

    def extend(
        self, x_ND: jax.Array, context: Context, cache: Cache | None
    ) -> tuple[jax.Array, Cache]:
        """Attends from new tokens; returns its output and the longer cache."""
        q, k, v = self._heads(x_ND, context)
        gathered, cache = extend_cache(q, k, v, cache, context, self._window(context))
        return self._out(gathered.astype(x_ND.dtype)), cache

    def importance(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Returns how much each group [K, H] adds to the residual stream: the mean norm of its part
        of the output over tokens.
        """
        gathered_NKHQE = self.gather(x_ND, context)
        parts_NKHD = jnp.einsum("nkhqe,khqed->nkhd", gathered_NKHQE, self.w_out[...])
        return jnp.linalg.norm(parts_NKHD, axis=-1).mean(0)


def _tokens_inside(x: jax.Array, seq_len: int) -> jax.Array:
    """Heads [N, K, H, …, E] as [B, K, H, …, T, E]: products batch over what is before T."""
    by_row = x.reshape(-1, seq_len, *x.shape[1:])
    return jnp.moveaxis(by_row, 1, -2)
