"""The loop over chunks of tokens: logits are computed once, used for values and gradients, and
forgotten.

Shape letters: N tokens (of a chunk and of all its streams of one width, where they are stacked), C
tokens of a chunk, K streams or chunks that are stacked, V vocab, D d_model, M terms.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.distill._plan import Constants, LossPlan, OnlineTeacher
from matta_jax.distill._softmaxes import Vocab
from matta_jax.distill._terms import chunk_terms

# Rows of hidden states, of all streams, that one addition to the table's gradient has where chunks
# are smaller: with more of them, gradients of logits leave a TPU's core (compiled for v5e).
_ROWS_OF_GROUP = 1024

# Bytes of a table that stays in this core, and of a chunk's logits beside it, of all streams.
_TABLE_IN_CORE = 2**26
_LOGITS_IN_CORE = 2**25
_FEWEST_TOKENS = 64

# Of each stream's outputs, and of the table; None where they are not made, or there is no table.
Gradients = tuple[tuple[jax.Array, ...] | None, jax.Array | None]


def scan_chunks(
    plan: LossPlan,
    outputs: tuple[jax.Array, ...],
    table_VD: jax.Array,
    constants: Constants,
    vocab: Vocab,
    *,
    gradients: bool,
) -> tuple[jax.Array, Gradients]:
    """Returns the sums [M + 2] of `chunk_terms`, and gradients of the hidden states and of the
    table (float32).
    """
    num_tokens = outputs[0].shape[0]
    chunk_size = _tokens_of_chunk(plan.chunk_size, outputs, table_VD)
    num_chunks = -(-num_tokens // chunk_size)
    group = _chunks_of_group(num_chunks, chunk_size, outputs) if gradients else 1
    shape = (-(-num_chunks // group), group) if group > 1 else (num_chunks,)
    tables = _Tables(outputs, table_VD)

    # A Teacher's head is one for all tokens, and does not go by with them.
    teacher_per_token: Any = constants.teacher
    head = None
    if isinstance(constants.teacher, OnlineTeacher):
        teacher_per_token = constants.teacher.hidden
        head = constants.teacher.head

    def of_chunk(chunk: Any) -> tuple[jax.Array, list[jax.Array] | None, Any]:
        """The sums, the gradients of the hidden states, and what makes that of the table."""
        hidden, labels, weights, teacher = chunk
        if head is not None:
            teacher = OnlineTeacher(teacher, head)
        chunk_constants = dataclasses.replace(
            constants, labels=labels, weights=weights, teacher=teacher
        )

        stacked = tables.stack(hidden)
        logits = tables.logits(stacked)
        sums, d_logits = chunk_terms(plan, logits, chunk_constants, vocab, gradients=gradients)
        if d_logits is None:
            return sums, None, None
        d_hidden, d_stacked = tables.backward(d_logits)
        return sums, d_hidden, (d_stacked, stacked)

    def step(d_table_VD: jax.Array | None, chunks: Any) -> tuple[jax.Array | None, Any]:
        sums, d_hidden, factors = of_chunk(chunks) if group == 1 else jax.lax.map(of_chunk, chunks)
        if d_table_VD is not None:
            d_table_VD = tables.add_gradient(d_table_VD, *factors)
        return d_table_VD, (sums, d_hidden)

    d_table_VD = jnp.zeros(table_VD.shape, jnp.float32) if gradients else None
    per_token = (outputs, constants.labels, constants.weights, teacher_per_token)
    chunks = jax.tree.map(functools.partial(_in_chunks, shape), per_token)
    d_table_VD, (sums, d_hidden) = jax.lax.scan(step, d_table_VD, chunks)

    if d_hidden is not None:
        d_hidden = tuple(_in_one(d_hidden_KCD, num_tokens) for d_hidden_KCD in d_hidden)
    return jnp.sum(sums.reshape(-1, sums.shape[-1]), axis=0), (d_hidden, d_table_VD)


def _tokens_of_chunk(most: int, outputs: Sequence[jax.Array], table_VD: jax.Array) -> int:
    """Tokens of a chunk: a power of two, where `most` would have more logits than stay in a TPU's
    core beside the table.

    A table that is not there itself is read from memory for each chunk, so that fewer chunks are
    better; and so are they in float32, whose products are slow.
    """
    dtype, (vocab_size, width) = outputs[0].dtype, table_VD.shape
    if dtype == jnp.float32 or vocab_size * width * dtype.itemsize > _TABLE_IN_CORE:
        return most
    fitting = _LOGITS_IN_CORE // (4 * vocab_size * len(outputs))
    return min(most, max(_FEWEST_TOKENS, 2 ** int(math.log2(max(fitting, 1)))))


def _chunks_of_group(num_chunks: int, chunk_size: int, outputs: Sequence[jax.Array]) -> int:
    """How many chunks are added to the table's gradient at once.

    Each addition reads and writes all of it, in float32: of few rows that takes longer than their
    product. What a group keeps for it is in the type of the outputs, so that in float32, where it
    would be large and products are slow, a group is one chunk.
    """
    if outputs[0].dtype == jnp.float32:
        return 1
    return min(num_chunks, max(1, _ROWS_OF_GROUP // (chunk_size * len(outputs))))


def _in_chunks(shape: tuple[int, ...], x: jax.Array) -> jax.Array:
    """[N, …] to [*shape, C, …]: the chunks, or groups and the chunks of each. Tokens that fill the
    last chunk have weight 0.
    """
    chunk_size = -(-len(x) // math.prod(shape))
    num_padding = math.prod(shape) * chunk_size - len(x)
    if num_padding:
        x = jnp.pad(x, [(0, num_padding)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(*shape, chunk_size, *x.shape[1:])


def _in_one(chunks: jax.Array, num_tokens: int) -> jax.Array:
    """[chunks, C, D] to [N, D], without what filled the last chunk."""
    return chunks.reshape(-1, chunks.shape[-1])[:num_tokens]


class _Tables:
    """The table at each width of a stream, sliced and cast once, not in the loop. Streams of equal
    width share a matmul.
    """

    def __init__(self, outputs: Sequence[jax.Array], table_VD: jax.Array):
        self._dtype = outputs[0].dtype

        self._streams: dict[int, list[int]] = {}
        for stream, hidden_ND in enumerate(outputs):
            self._streams.setdefault(hidden_ND.shape[1], []).append(stream)

        self._tables: dict[int, jax.Array] = {}
        for width in self._streams:
            self._tables[width] = table_VD[:, :width].astype(self._dtype)

    def stack(self, hidden: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """Returns the hidden states of all streams of a width, one stream below the other."""
        stacked = {}
        for width, streams in self._streams.items():
            stacked[width] = jnp.concatenate([hidden[stream] for stream in streams])
        return stacked

    def logits(self, stacked: dict[int, jax.Array]) -> list[jax.Array]:
        """Returns the logits [C, V] of each stream."""
        logits: dict[int, jax.Array] = {}
        for width, streams in self._streams.items():
            z_NV = _matmul("nd,vd->nv", stacked[width], self._tables[width])
            vocab_size = z_NV.shape[-1]
            z_KCV = z_NV.reshape(len(streams), -1, vocab_size)
            logits.update(zip(streams, z_KCV, strict=True))
        return _in_order(logits)

    def backward(
        self, d_logits: Sequence[jax.Array]
    ) -> tuple[list[jax.Array], dict[int, jax.Array]]:
        """Returns the gradients [C, d_k] of each stream's hidden states; and those [N, V] of the
        logits, stacked by width.
        """
        d_hidden: dict[int, jax.Array] = {}
        d_stacked: dict[int, jax.Array] = {}
        for width, streams in self._streams.items():
            dz_NV = jnp.concatenate([d_logits[stream] for stream in streams]).astype(self._dtype)
            d_stacked[width] = dz_NV

            d_hidden_ND = _matmul("nv,vd->nd", dz_NV, self._tables[width]).astype(self._dtype)
            d_hidden_KCD = d_hidden_ND.reshape(len(streams), -1, width)
            d_hidden.update(zip(streams, d_hidden_KCD, strict=True))
        return _in_order(d_hidden), d_stacked

    def add_gradient(
        self,
        d_table_VD: jax.Array,
        d_stacked: dict[int, jax.Array],
        stacked: dict[int, jax.Array],
    ) -> jax.Array:
        """Adds the table's gradient of the logits' [..., N, V] and of hidden states [..., N, D]."""
        for width in self._streams:
            dz_NV, hidden_ND = (
                rows.reshape(-1, rows.shape[-1]) for rows in (d_stacked[width], stacked[width])
            )
            # Not .at[].add: XLA of jaxlib 0.11.2 crashes when it compiles that scatter in a
            # shard_map on CPUs.
            d_columns_VD = d_table_VD[:, :width] + _matmul("nv,nd->vd", dz_NV, hidden_ND)
            d_table_VD = jax.lax.dynamic_update_slice(d_table_VD, d_columns_VD, (0, 0))
        return d_table_VD


def _in_order(of_streams: dict[int, jax.Array]) -> list[jax.Array]:
    return [of_streams[stream] for stream in range(len(of_streams))]


def _matmul(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """In the operands' type, with sums in float32."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
