"""Self-attention: over a sequence, and over a cache of keys and values that new tokens extend.

The softmax is normalised after the values are summed, which saves a pass. Where several queries
share a head's keys and values, they have an axis Q of their own: one product for all of them.

Shape letters: B batch, T new positions, S positions attended to, N tokens (= B·T), D d_model,
  K head granules, H heads of a granule, Q queries of a head, E head_dim, C q, k and v.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models.layers._build import Build
from matta_jax.models.layers._context import Context, Window
from matta_jax.models.layers._engines import fused, fused_part, serves
from matta_jax.models.layers._kept import ATTENTION, QKV, checkpoint_name
from matta_jax.models.layers._linear import project

Cache = tuple[jax.Array, jax.Array]
"""Keys and values [B·K·H, S, E] of a layer: any other shape would be copied when it is read."""

# Blocks of causal attention's queries: how many at most, and the fewest queries of one.
_MOST_BLOCKS = 4
_SMALLEST_BLOCK = 64


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    window: Window | None = None,
) -> jax.Array:
    """Attends within sequences.

    Args:
      q: queries [B, K, H, T, E], or [B, K, H, Q, T, E].
      k, v: keys and values [B, K, H, T, E].
      context: of the pass; what is cached is not read.
      window: of causal attention; None: back to the first position.

    Returns:
      What each head has gathered [N, K, H, E], or [N, K, H, Q, E].
    """
    # Before the product: a query has E numbers, but S scores.
    head_dim = q.shape[-1]
    q = q / math.sqrt(head_dim)
    if context.stretches is not None:
        gathered = _attend_across(q, k, v, context, window)
    elif context.engine is not None and serves(context.engine, q):
        gathered = fused(q, k, v, context, window)
    elif context.seen_BS is not None:
        # [B, 1, 1, 1, S]: alike for all heads and queries of a row.
        batch_size, seen_len = context.seen_BS.shape
        may_see = context.seen_BS.reshape(batch_size, *[1] * (q.ndim - 2), seen_len)
        gathered = _softmax_attention(q, k, v, may_see)
    else:
        gathered = _causal_attention(q, k, v, _Sight(window, context.documents_BT))
    return checkpoint_name(_by_token(gathered), ATTENTION)


def _attend_across(
    q: jax.Array, k: jax.Array, v: jax.Array, context: Context, window: Window | None
) -> jax.Array:
    """Attends with a device's queries to the keys and values of all that share a window."""
    stretches, engine = context.stretches, context.engine
    assert stretches is not None and context.at_T is not None
    k, v = stretches.join(k, -2), stretches.join(v, -2)
    seq_len = k.shape[-2]
    queries = jnp.split(q, 2, axis=-2)
    positions = jnp.split(context.at_T, 2)
    # No position of the first half sees one of the second.
    gathered = []
    for half, num_keys in enumerate((seq_len // 2, seq_len)):
        operands = queries[half], k[..., :num_keys, :], v[..., :num_keys, :]
        if engine is not None and serves(engine, queries[half], is_part=True):
            part = fused_part(*operands, positions[half], context, window)
        else:
            sight = _Sight(window, context.documents_BT, positions[half])
            part = _causal_attention(*operands, sight)
        gathered.append(part)
    return jnp.concatenate(gathered, axis=-2)


def _by_token(gathered: jax.Array) -> jax.Array:
    """What heads have gathered, tokens first: the output's product is one over them."""
    *_, head_dim = gathered.shape
    heads = gathered.shape[1:-2]
    return jnp.moveaxis(gathered, -2, 1).reshape(-1, *heads, head_dim)


@dataclasses.dataclass(frozen=True)
class _Sight:
    """What the queries of causal attention see.

    Attributes:
      window: as of `attend`.
      documents_BS: as of `Context`, of all keys.
      at_T: the positions of the queries, where these are no longer the keys' own.
    """

    window: Window | None
    documents_BS: jax.Array | None
    at_T: jax.Array | None = None

    def num_keys(self, end: int, seq_len: int) -> int:
        """How many keys queries up to `end` see at most, of `seq_len`."""
        return end if self.at_T is None else seq_len

    def mask(self, start: int, end: int, num_keys: int) -> jax.Array:
        """Whether queries from `start` to `end` see each of the first keys: [T, S], or
        [B, T, S] where rows differ.
        """
        queries = slice(start, end)
        at_T = jnp.arange(start, end) if self.at_T is None else self.at_T[queries]
        distance_TS = at_T[:, None] - jnp.arange(num_keys)
        may_see = distance_TS >= 0
        if self.window is not None:
            may_see &= self.window.sees(distance_TS)
        if self.documents_BS is None:
            return may_see
        own_BT = self.documents_BS[:, queries if self.at_T is None else at_T]
        return may_see & (own_BT[:, :, None] == self.documents_BS[:, None, :num_keys])


def _causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, sight: _Sight) -> jax.Array:
    """Attention of each position to itself and those before it, in blocks of queries.

    Each block leaves out the keys after it, which saves 3/8 of the work in four blocks.
    """
    seq_len = q.shape[-2]
    # Rounded up, or a fifth block would hold the remainder.
    quarter = -(-seq_len // _MOST_BLOCKS)
    size = max(quarter, _SMALLEST_BLOCK)

    blocks = []
    for start in range(0, seq_len, size):
        end = min(start + size, seq_len)
        num_keys = sight.num_keys(end, k.shape[-2])
        keys = k[..., :num_keys, :]
        values = v[..., :num_keys, :]
        may_see = sight.mask(start, end, num_keys)
        if may_see.ndim == 3:
            # [B, 1, 1, T, S], or with one axis more for the queries of a head.
            axes = [1] * (q.ndim - 3)
            may_see = may_see.reshape(-1, *axes, *may_see.shape[1:])
        queries = q[..., start:end, :]
        gathered = _softmax_attention(queries, keys, values, may_see)
        blocks.append(gathered)
    return jnp.concatenate(blocks, axis=-2)


def extend_cache(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Cache | None,
    context: Context,
    window: Window | None = None,
) -> tuple[jax.Array, Cache]:
    """Attends from new tokens to themselves and to what is cached.

    Args:
      q, k, v: queries, keys and values of the new tokens, as of `attend`.
      cache: of the tokens before them, with room for the new ones; None: there are none.
      context: of the pass; `start` says where each row's new tokens begin.
      window: as of `attend`.

    Returns:
      What each head has gathered, as of `attend`, and the longer cache; without one before it, just
      the new keys and values.
    """
    new_keys = _flat(k)
    new_values = _flat(v)
    if cache is None or context.start is None:
        return attend(q, k, v, context, window), (new_keys, new_values)

    batch_size = q.shape[0]
    heads_of_row = new_keys.shape[0] // batch_size
    start = context.start
    # The cache counts heads among its rows, so that each head of a row has its row's start.
    if start.ndim:
        start = jnp.repeat(start, heads_of_row)

    # Written before they are read: a new token attends to itself too.
    cached_keys, cached_values = cache
    keys = _write(cached_keys, new_keys, start)
    values = _write(cached_values, new_values, start)

    # Read in the type of the queries: a narrower cache saves memory, and no sum is in its type.
    read_keys, read_values = keys.astype(k.dtype), values.astype(v.dtype)

    # What stands in the cache after a token's own entry is of later tokens, or not written yet.
    # [T, S], or [rows, T, S] where rows start at different positions.
    new_T = jnp.arange(context.seq_len)
    last_seen = start[..., None] + new_T
    positions_S = jnp.arange(keys.shape[1])
    may_see = positions_S <= last_seen[..., None]
    if window is not None:
        may_see &= window.sees(last_seen[..., None] - positions_S)

    head_dim = q.shape[-1]
    # Heads as rows, as the cache has them; the queries of a head stay together.
    queries = q.reshape(new_keys.shape[0], *q.shape[3:]) / math.sqrt(head_dim)
    if may_see.ndim == queries.ndim - 1 and may_see.ndim == 3:
        may_see = may_see[:, None]
    gathered = _softmax_attention(queries, read_keys, read_values, may_see)
    gathered = gathered.reshape(q.shape)
    return _by_token(gathered), (keys, values)


def _flat(x_BKHTE: jax.Array) -> jax.Array:
    """Heads as rows [B·K·H, T, E], as a cache keeps them."""
    return x_BKHTE.reshape(-1, *x_BKHTE.shape[-2:])


def _write(cached: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes new entries [rows, T, E] into a cache at one position, or at one for each row."""
    new = new.astype(cached.dtype)
    # One slice, which is cheaper on a CPU than a write for each row.
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis=1)

    def write_row(row: jax.Array, entries: jax.Array, position: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, entries, position, 0)

    return jax.vmap(write_row)(cached, new, start)


def _softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    may_see: jax.Array,
) -> jax.Array:
    """Softmax attention of scaled queries [..., T, E], or [..., Q, T, E], to keys [..., S, E];
    `may_see` fits [..., T, S].
    """
    # The queries of a head in one axis: a TPU's compiler aborts on products over two.
    shape = q.shape
    q = q.reshape(*k.shape[:-2], -1, shape[-1])
    # In float32: the exponential makes a relative error of an absolute one.
    scores = jnp.einsum("...te,...se->...ts", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(*shape[:-1], -1)
    # Weights of exactly 0, whatever stands there. Each query needs a position that it sees: of a
    # row of -inf the maximum, and with it the softmax, is not a number.
    scores = jnp.where(may_see, scores, -jnp.inf)
    # The maximum keeps exponentials in range and cancels out, so it has no gradient.
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    unnormed = jnp.exp(scores - largest)

    # A product in the compute type, divided by a sum in float32.
    factors = unnormed.astype(v.dtype).reshape(*k.shape[:-2], -1, k.shape[-2])
    summed = jnp.einsum("...ts,...se->...te", factors, v)
    return summed.reshape(*shape[:-1], -1) / unnormed.sum(-1, keepdims=True)


def _heads_first(part_BTK1HE: jax.Array) -> jax.Array:
    """One of queries, keys and values as [B, K, H, T, E]: products batch over B, K and H."""
    part_BTKHE = part_BTK1HE[:, :, :, 0]
    return jnp.transpose(part_BTKHE, (0, 2, 3, 1, 4))


class Attention(nnx.Module):
    """Self-attention with biases, as GPT-2 has it."""

    def __init__(self, build: Build):
        heads = ("heads", "head_dim")
        # Granules first: a prefix of them is one piece of memory, and no device's shard is cut.
        self.w_qkv = build.weight("heads_granules", "d_model", "qkv", *heads)
        self.b_qkv = build.weight("heads_granules", "qkv", *heads)
        self.w_out = build.weight("heads_granules", *heads, "d_model", scale=build.residual_scale)
        self.b_out = build.weight("d_model")

    def _heads(self, x_ND: jax.Array, seq_len: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values [B, K, H, T, E]."""
        # One product for all three.
        product_NKCHE = project("nd,kdche->nkche", x_ND, self.w_qkv[...])
        qkv_NKCHE = checkpoint_name(product_NKCHE, QKV) + self.b_qkv[...]
        qkv_BTKCHE = qkv_NKCHE.reshape(-1, seq_len, *qkv_NKCHE.shape[1:])
        # The gradient of a split is put together; that of slices would be added up.
        q_part, k_part, v_part = jax.lax.split(qkv_BTKCHE, (1, 1, 1), axis=3)
        q = _heads_first(q_part)
        k = _heads_first(k_part)
        v = _heads_first(v_part)
        return q, k, v

    def gather(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Returns what each head has gathered [N, K, H, E]."""
        q, k, v = self._heads(x_ND, context.seq_len)
        gathered_NKHE = attend(q, k, v, context)
        # From float32, which the sums of the softmax are in.
        return gathered_NKHE.astype(x_ND.dtype)

    def _out(self, gathered_NKHE: jax.Array) -> jax.Array:
        w_KHED = self.w_out[...]
        # One axis F to sum over (= H·E), not two that XLA would turn.
        num_granules, _, _, d_model = w_KHED.shape
        w_KFD = w_KHED.reshape(num_granules, -1, d_model)
        gathered_NKF = gathered_NKHE.reshape(*gathered_NKHE.shape[:2], -1)
        product_ND = project("nkf,kfd->nd", gathered_NKF, w_KFD)
        return product_ND + self.b_out[...]

    def __call__(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Attends over sequences."""
        gathered_NKHE = self.gather(x_ND, context)
        return self._out(gathered_NKHE)

    def extend(
        self,
        x_ND: jax.Array,
        context: Context,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache]:
        """Attends from new tokens; returns its output and the longer cache."""
        q, k, v = self._heads(x_ND, context.seq_len)
        gathered_NKHE, cache = extend_cache(q, k, v, cache, context)
        gathered_NKHE = gathered_NKHE.astype(x_ND.dtype)
        return self._out(gathered_NKHE), cache

    def importance(self, x_ND: jax.Array, context: Context) -> jax.Array:
        """Returns how much each head [K, H] adds to the residual stream: the mean norm of its part
        of the output over tokens.
        """
        gathered_NKHE = self.gather(x_ND, context)
        # The output's product without its sum over heads; the bias is no head's.
        parts_NKHD = jnp.einsum("nkhe,khed->nkhd", gathered_NKHE, self.w_out[...])
        norms_NKH = jnp.linalg.norm(parts_NKHD, axis=-1)
        return norms_NKH.mean(0)
