"""Fused attention: kernels that never write the scores of all pairs to memory.

`blocks` of `_attention` is what both compute, and what they are compared with. On a TPU it is the
splash kernel of JAX (Pallas), on a GPU cuDNN's, called through `jax.nn`. A kernel is one device's:
on several it runs inside `shard_map`, each with its rows and heads.

Shape letters: B batch, K head granules, H heads of a granule, Q queries of a head, T positions,
  E head_dim, S positions that are attended to.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from matta_jax.models.layers._context import Context, Window
from matta_jax.models.layers._kept import ATTENTION
from matta_jax.sharding import Engine, free_axes

# Of the splash kernel: T is a multiple of the smallest.
_BLOCKS = (512, 256, 128)
_CUDNN_TYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MOST_HEAD_DIM = 128

Attend = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """What attends to what.

    Attributes:
      is_causal: whether a position sees itself and those before it; otherwise all that are seen.
      window: how many of these at most; None: all.
      interpret: of the engine.
      before: how many keys stand before the first query.
      parts: how many devices share the queries.
    """

    is_causal: bool
    window: int | None
    interpret: bool
    before: int = 0
    parts: int = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Where:
    """Which of all positions a kernel's queries and keys are.

    Attributes:
      part: which of a pattern's parts the queries are; None: it has one.
      query_segments_BT, key_segments_BS: positions see those of their own segment alone; None: all
        are of one.
    """

    part: jax.Array | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None


def serves(engine: Engine, q: jax.Array, *, is_part: bool = False) -> bool:
    """Whether a kernel takes queries of this shape and type; if not, blocks do the work. cuDNN's
    takes no part of a window's queries.
    """
    seq_len, head_dim = q.shape[-2:]
    if is_part and engine.name != "splash":
        return False
    if engine.name == "splash":
        return seq_len % _BLOCKS[-1] == 0
    if engine.name == "cudnn":
        return q.dtype in _CUDNN_TYPES and head_dim % 8 == 0 and head_dim <= _CUDNN_MOST_HEAD_DIM
    return False


def fused(
    q: jax.Array, k: jax.Array, v: jax.Array, context: Context, window: Window | None
) -> jax.Array:
    """Attends by the kernel of a pass's engine, to the first `serves` said yes.

    Args:
      q: scaled queries [B, K, H, T, E], or [B, K, H, Q, T, E].
      k, v: keys and values [B, K, H, T, E].
      context: of the pass.
      window: of causal attention; None: back to the first position.

    Returns:
      What each head has gathered, of the shape of q. Where no position sees what a row does not
      see, the rows of unseen positions hold other numbers than those of blocks, and nothing reads
      them.
    """
    engine = context.engine
    assert engine is not None
    is_causal = context.seen_BS is None
    segments = context.documents_BT if is_causal else context.seen_BS
    pattern = _Pattern(is_causal, None, engine.interpret)
    return _fused((q, k, v), engine, pattern, _Where(None, segments, segments), window)


def fused_part(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    at_T: jax.Array,
    context: Context,
    window: Window | None,
) -> jax.Array:
    """Attends with one of the stretches of queries that a device has of a window, as `fused` does.

    Args:
      q: of the stretch.
      k, v: of all positions up to the end of its half of the window.
      at_T: the positions of the queries.
      context: of the pass.
      window: as of `fused`.
    """
    engine, stretches = context.engine, context.stretches
    assert engine is not None and stretches is not None
    size, num_keys = q.shape[-2], k.shape[-2]
    before = num_keys - size * stretches.count
    part = stretches.places[1 if before else 0]
    where = _Where(part)
    if context.documents_BT is not None:
        documents_BS = context.documents_BT
        where = _Where(part, documents_BS[:, at_T], documents_BS[:, :num_keys])
    pattern = _Pattern(True, None, engine.interpret, before, stretches.count)
    return _fused((q, k, v), engine, pattern, where, window)


def _fused(
    operands: tuple[jax.Array, jax.Array, jax.Array],
    engine: Engine,
    pattern: _Pattern,
    where: _Where,
    window: Window | None,
) -> jax.Array:
    q, k, v = operands
    grouped = q if q.ndim == k.ndim + 1 else q[:, :, :, None]

    def run(window_size: int | None) -> jax.Array:
        bound = dataclasses.replace(pattern, window=window_size)
        attend = functools.partial(_KERNELS[engine.name], bound)
        return _on_devices(engine, attend)(grouped, k, v, where)

    if window is None:
        gathered = run(None)
    else:
        gathered = jax.lax.cond(window.is_local, lambda: run(window.size), lambda: run(None))
    return gathered.reshape(q.shape)


def _on_devices(engine: Engine, attend: Attend) -> Attend:
    """Each device attends for its own rows and heads."""
    mesh = engine.mesh
    if mesh is None or mesh.size == 1:
        return attend
    rows = PartitionSpec(engine.batch_axes, None, engine.heads_axis)
    segments = PartitionSpec(engine.batch_axes)
    where: Any = _Where(*cast(Any, (PartitionSpec(), segments, segments)))
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(rows, rows, rows, where),
        out_specs=rows,
        axis_names=free_axes(mesh),
        check_vma=False,
    )


def _splash(
    pattern: _Pattern, q: jax.Array, k: jax.Array, v: jax.Array, where: _Where
) -> jax.Array:
    """The splash kernel, for the rows of one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    batch_size, *heads, seq_len, head_dim = q.shape
    num_queries = heads[0] * heads[1] * heads[2]
    kernel = _splash_kernel(pattern, num_queries, seq_len)
    if where.part is not None:
        kernel = _part_of(kernel, pattern.parts, where.part)
    queries = q.reshape(batch_size, num_queries, seq_len, head_dim)
    keys, values = (x.reshape(batch_size, heads[0] * heads[1], *x.shape[-2:]) for x in (k, v))
    if where.query_segments_BT is None or where.key_segments_BS is None:
        return jax.vmap(kernel)(queries, keys, values).reshape(q.shape)

    ids = splash_attention_kernel.SegmentIds(
        where.query_segments_BT.astype(jnp.int32), where.key_segments_BS.astype(jnp.int32)
    )
    return jax.vmap(kernel)(queries, keys, values, ids).reshape(q.shape)


def _part_of(kernel: Any, parts: int, part: jax.Array) -> Any:
    """The kernel of one of the devices that share its queries: a part of its tables."""

    def cut(table: jax.Array | None, axis: int) -> jax.Array | None:
        if table is None:
            return None
        size = table.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(table, part * size, size, axis)

    def part_of(tables: Any) -> Any:
        # As `manual_sharding_spec` cuts them: those of blocks have an axis of heads first.
        return tables._replace(
            data_next=cut(tables.data_next, 1),
            mask_next=cut(tables.mask_next, 1),
            block_mask=cut(tables.block_mask, 1),
            q_sequence=cut(tables.q_sequence, 0),
        )

    (forward, *backward), settings = kernel.tree_flatten()
    return type(kernel)(part_of(forward), *map(part_of, backward), **settings)


@functools.lru_cache(maxsize=64)
def _splash_kernel(pattern: _Pattern, num_heads: int, seq_len: int) -> Any:
    """The kernel of all parts, of which each has `seq_len` queries."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    num_queries = pattern.parts * seq_len
    shape = (num_queries, pattern.before + num_queries)
    mask: splash_attention_mask.Mask
    if not pattern.is_causal:
        mask = splash_attention_mask.FullMask(shape)
    elif pattern.window is None:
        mask = splash_attention_mask.CausalMask(shape, pattern.before, pattern.parts)
    else:
        reach = (pattern.window - 1, 0)
        mask = splash_attention_mask.LocalMask(shape, reach, pattern.before, pattern.parts)
    size = next(size for size in _BLOCKS if seq_len % size == 0)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    # Its tables are made once, and not within a trace that they would outlive.
    with jax.ensure_compile_time_eval():
        return splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * num_heads),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=pattern.parts,
            interpret=pattern.interpret,
            residual_checkpoint_name=ATTENTION,
        )


def _cudnn(pattern: _Pattern, q: jax.Array, k: jax.Array, v: jax.Array, where: _Where) -> jax.Array:
    """cuDNN's kernel, for the rows of one device; interpreted, what XLA makes of the same call."""
    batch_size, seq_len, head_dim = q.shape[0], *q.shape[-2:]
    segments_BT = where.query_segments_BT

    def tokens_first(x: jax.Array) -> jax.Array:
        by_head = x.reshape(batch_size, -1, seq_len, head_dim)
        return jnp.swapaxes(by_head, 1, 2)

    gathered = jax.nn.dot_product_attention(
        tokens_first(q),
        tokens_first(k),
        tokens_first(v),
        mask=None if segments_BT is None else _same_segment(segments_BT),
        # Queries are scaled already.
        scale=1.0,
        is_causal=pattern.is_causal,
        local_window_size=None if pattern.window is None else (pattern.window - 1, 0),
        implementation="xla" if pattern.interpret else "cudnn",
    )
    return jnp.swapaxes(gathered, 1, 2).reshape(q.shape)


def _same_segment(segments_BT: jax.Array) -> jax.Array:
    """Which positions are of one segment [B, 1, T, S]."""
    return (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]


_KERNELS: dict[str, Attend] = {"splash": _splash, "cudnn": _cudnn}
