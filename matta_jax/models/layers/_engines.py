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
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from matta_jax.models.layers._context import Context, Window
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
    """

    is_causal: bool
    window: int | None
    interpret: bool


def serves(engine: Engine, q: jax.Array) -> bool:
    """Whether a kernel takes queries of this shape and type; if not, blocks do the work."""
    seq_len, head_dim = q.shape[-2:]
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
    kernel = _KERNELS[engine.name]
    is_causal = context.seen_BS is None
    grouped = q if q.ndim == k.ndim + 1 else q[:, :, :, None]
    # Positions see those of their own segment alone.
    segments = context.documents_BT if is_causal else context.seen_BS
    operands = (grouped, k, v) if segments is None else (grouped, k, v, segments)

    def run(window_size: int | None) -> jax.Array:
        pattern = _Pattern(is_causal, window_size, engine.interpret)
        attend = functools.partial(kernel, pattern)
        return _on_devices(engine, attend)(*operands)

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

    def run(*operands: jax.Array) -> jax.Array:
        segment_specs = [PartitionSpec(engine.batch_axes)] * (len(operands) - 3)
        return jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(rows, rows, rows, *segment_specs),
            out_specs=rows,
            axis_names=free_axes(mesh),
            check_vma=False,
        )(*operands)

    return run


def _splash(
    pattern: _Pattern,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """The splash kernel, for the rows of one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    batch_size, *heads, seq_len, head_dim = q.shape
    num_queries = heads[0] * heads[1] * heads[2]
    kernel = _splash_kernel(pattern, num_queries, seq_len)
    queries = q.reshape(batch_size, num_queries, seq_len, head_dim)
    keys, values = (x.reshape(batch_size, heads[0] * heads[1], seq_len, -1) for x in (k, v))
    if segments_BT is None:
        return jax.vmap(kernel)(queries, keys, values).reshape(q.shape)

    segments = segments_BT.astype(jnp.int32)
    ids = splash_attention_kernel.SegmentIds(segments, segments)
    return jax.vmap(kernel)(queries, keys, values, ids).reshape(q.shape)


@functools.lru_cache(maxsize=64)
def _splash_kernel(pattern: _Pattern, num_heads: int, seq_len: int) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    shape = (seq_len, seq_len)
    mask: splash_attention_mask.Mask
    if not pattern.is_causal:
        mask = splash_attention_mask.FullMask(shape)
    elif pattern.window is None:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.LocalMask(shape, (pattern.window - 1, 0), offset=0)
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
            q_seq_shards=1,
            interpret=pattern.interpret,
        )


def _cudnn(
    pattern: _Pattern,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """cuDNN's kernel, for the rows of one device; interpreted, what XLA makes of the same call."""
    batch_size, seq_len, head_dim = q.shape[0], *q.shape[-2:]

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
