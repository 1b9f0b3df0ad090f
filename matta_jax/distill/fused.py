"""The nested distillation loss in one pass over the vocabulary, never materialising logits
(docs/decisions.md).

Streams k (sub-models) have hidden states h_k [N, d_k] and share the tied table E [V, D], of which a
stream uses the first d_k columns. With z_k = h_k E[:, :d_k]ᵀ, p_k = softmax(z_k), p_kᵀ =
softmax(z_k / T), token weights m:

    loss = Σ_terms w · Σ_n m_n value_n / total
    dz_k = m / total · [ a_k (p_k - y) + w_k T (p_kᵀ - p_TAᵀ) ]      dh_k = dz_k E_k      dE[:,
    :d_k] += dz_kᵀ h_k

Tokens go by in chunks under `lax.scan`, inside a `custom_vjp` whose forward pass makes the
gradients too: logits are computed once, used and forgotten. The TA's dz has no distillation part at
all, so the stop-gradient is structural. Where nothing is differentiated (evaluation), no gradient
work is done.

On several devices the scan runs inside `shard_map`: tokens over the data axes; columns of E
gathered once before it and dE scattered once after it; with a vocabulary axis each device has its
own rows of E, and only [chunk] vectors cross devices inside the loop. (Plain jit gathers all hidden
states and computes the whole loss on every device.)

Shape letters: N tokens, V vocab, D d_model, M terms.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from matta_jax.distill._plan import (
    Constants,
    LossPlan,
    OnlineTeacher,
    SoftLabels,
    Teacher,
    TopKTeacher,
)
from matta_jax.distill._scan import Gradients, scan_chunks
from matta_jax.distill._softmaxes import Vocab
from matta_jax.distill._terms import chunk_terms
from matta_jax.errors import UserError
from matta_jax.sharding import Layout, free_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Losses:
    """What `nested_loss` returns; gradients flow from `loss` alone.

    Attributes:
      loss: the scalar.
      sums: each term's weighted sum over tokens [M], without the term's own weight.
      agreement: weighted sum over tokens of whether a most likely id of the Student is one of the
        TA's.
      count: sum of the token weights.
    """

    loss: jax.Array
    sums: jax.Array
    agreement: jax.Array
    count: jax.Array


def nested_loss(  # noqa: PLR0913  Keyword-only: where the loss is made.
    plan: LossPlan,
    outputs: Sequence[jax.Array],
    table_VD: jax.Array | None,
    labels_N: jax.Array | SoftLabels,
    weights_N: jax.Array,
    *,
    term_weights_M: jax.Array,
    total: jax.Array,
    teacher: Teacher | None = None,
) -> Losses:
    """Computes the terms of `plan`, and with them the gradients of hidden states and table where
    differentiated.

    Args:
      plan: the static structure.
      outputs: hidden states [N, d_k] of each stream, all of one type, which is that of the matmuls.
        Or, where `table_VD` is None, logits: [N, classes] of a softmax, or [N] of a sigmoid; these
        are not chunked.
      table_VD: the tied embedding, in any float type. Each stream uses its first d_k columns.
      labels_N: target ids, or several of each token with their shares. An id outside the vocabulary
        makes the loss NaN, unless its weight is 0.
      weights_N: weight of each token; 0 leaves it out.
      term_weights_M: weight of each term; traced, so a ramp never recompiles.
      total: what weighted sums are divided by: the sum of the weights over *all* hosts and
        microbatches.
      teacher: the source of `teacher` terms.

    Raises:
      UserError: a `ta` term without a TA beside its stream; a `teacher` term without a Teacher, or
        with one of another vocabulary; cached labels of another temperature, or with ids outside
        the vocabulary (seen outside of `jax.jit` only).
    """
    if table_VD is None:
        outputs = [as_softmax(logits) for logits in outputs]
        vocab_size = outputs[0].shape[1]
    else:
        vocab_size = table_VD.shape[0]
    _check_terms(plan, len(outputs), teacher)
    _check_teacher(vocab_size, teacher)

    total = jnp.asarray(total, jnp.float32)
    constants = Constants(labels_N, weights_N.astype(jnp.float32), term_weights_M, total, teacher)
    loss, sums = _fused(plan, tuple(outputs), table_VD, constants)

    # `_fused` gives the sums no gradient: this says so to whoever differentiates them.
    sums = jax.lax.stop_gradient(sums)
    return Losses(loss, sums=sums[:-2], agreement=sums[-2], count=sums[-1])


def as_softmax(logits: jax.Array) -> jax.Array:
    """Returns float32 logits [N, classes]; a sigmoid of z [N] is the softmax of two classes with
    logits 0 and z.
    """
    logits = logits.astype(jnp.float32)
    if logits.ndim == 2:
        return logits
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def _check_terms(plan: LossPlan, num_streams: int, teacher: Teacher | None) -> None:
    """Each term has something to learn from."""
    for term in plan.terms:
        if term.target == "ta" and (num_streams == 1 or term.stream == plan.ta):
            raise UserError(
                f"the term {term.name!r} distils from the TA, but stream {term.stream} of "
                f"{num_streams} is the TA itself; drop the term (weight 0), or nest the Student in "
                "a larger TA"
            )
        if term.target != "teacher":
            continue
        if teacher is None:
            raise UserError(
                f"the term {term.name!r} learns from a Teacher, but teacher=None; pass one, or "
                "drop it"
            )
        if isinstance(teacher, TopKTeacher) and term.temperature != teacher.temperature:
            raise UserError(
                f"temperature={term.temperature} of the term {term.name!r} must be the "
                f"{teacher.temperature} at which the Teacher's labels were captured; set it so, or "
                "capture them again"
            )


def _check_teacher(vocab_size: int, teacher: Teacher | None) -> None:
    """The Teacher speaks of the Student's ids."""
    if isinstance(teacher, OnlineTeacher) and teacher.head.shape[0] != vocab_size:
        raise UserError(
            f"the Teacher's vocabulary of {teacher.head.shape[0]} ids must be the Student's of "
            f"{vocab_size}; use a Teacher with the same tokenizer"
        )

    # The ids of a traced call have no values to look at.
    if isinstance(teacher, TopKTeacher) and not isinstance(teacher.ids, jax.core.Tracer):
        largest = int(np.max(np.asarray(teacher.ids), initial=0))
        if largest >= vocab_size:
            raise UserError(
                f"the Teacher's top-k id {largest} must be below the Student's vocabulary of "
                f"{vocab_size}; use labels of the same tokenizer"
            )


# The loss, and the sums [M + 2] of `chunk_terms`.
_Values = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    plan: LossPlan, outputs: tuple[jax.Array, ...], table_VD: jax.Array | None, constants: Constants
) -> _Values:
    values, _ = _run(plan, outputs, table_VD, constants, gradients=False)
    return values


def _fused_forward(
    plan: LossPlan, outputs: tuple[jax.Array, ...], table_VD: jax.Array | None, constants: Constants
) -> tuple[_Values, Gradients]:
    return _run(plan, outputs, table_VD, constants, gradients=True)


def _fused_backward(
    plan: LossPlan, gradients: Gradients, cotangents: _Values
) -> tuple[tuple[jax.Array, ...], jax.Array | None, None]:
    d_loss, _ = cotangents

    def scaled(gradient: jax.Array) -> jax.Array:
        return (d_loss * gradient).astype(gradient.dtype)

    d_outputs, d_table = jax.tree.map(scaled, gradients)
    return d_outputs, d_table, None


_fused.defvjp(_fused_forward, _fused_backward)


def _run(
    plan: LossPlan,
    outputs: tuple[jax.Array, ...],
    table_VD: jax.Array | None,
    constants: Constants,
    *,
    gradients: bool,
) -> tuple[_Values, Gradients]:
    """Returns (loss, sums [M + 2]), and (gradients of the outputs, gradient of the
    table) or Nones.
    """
    if table_VD is None:
        vocab = Vocab(outputs[0].shape[1])
        sums, d_outputs = chunk_terms(plan, outputs, constants, vocab, gradients=gradients)
        d_table_VD = None
    elif plan.layout is None:
        vocab = Vocab(table_VD.shape[0])
        sums, (d_outputs, d_table_VD) = scan_chunks(
            plan, outputs, table_VD, constants, vocab, gradients=gradients
        )
    else:
        sums, (d_outputs, d_table_VD) = _sharded(
            plan, plan.layout, outputs, table_VD, constants, gradients=gradients
        )

    loss = jnp.sum(sums[:-2] * constants.term_weights) / constants.total
    if table_VD is not None and d_table_VD is not None:
        d_table_VD = d_table_VD.astype(table_VD.dtype)
    return (loss, sums), (d_outputs, d_table_VD)


def _sharded(
    plan: LossPlan,
    layout: Layout,
    outputs: tuple[jax.Array, ...],
    table_VD: jax.Array,
    constants: Constants,
    *,
    gradients: bool,
) -> tuple[jax.Array, Gradients]:
    """`scan_chunks` on each device, over its tokens and its rows of the table. Collectives stand
    outside the loop.
    """
    vocab_size = table_VD.shape[0]
    num_parts = layout.mesh.shape[layout.vocab] if layout.vocab else 1
    rows_per_device = -(-vocab_size // num_parts)
    num_padding = rows_per_device * num_parts - vocab_size

    def padded(table: jax.Array) -> jax.Array:
        """A table whose rows the devices of the vocabulary divide evenly."""
        return jnp.pad(table, ((0, num_padding), (0, 0)))

    if isinstance(constants.teacher, OnlineTeacher):
        teacher = OnlineTeacher(constants.teacher.hidden, padded(constants.teacher.head))
        constants = dataclasses.replace(constants, teacher=teacher)

    def on_device(
        outputs: tuple[jax.Array, ...], table_VD: jax.Array, constants: Constants
    ) -> tuple[jax.Array, Gradients]:
        # Before the gather, which may so be half the bytes.
        table_VD = table_VD.astype(outputs[0].dtype)
        if layout.columns:
            table_VD = jax.lax.all_gather(table_VD, layout.columns, axis=1, tiled=True)

        start = jax.lax.axis_index(layout.vocab) * rows_per_device if layout.vocab else 0
        vocab = Vocab(vocab_size, start, layout.vocab)
        sums, (d_outputs, d_table_VD) = scan_chunks(
            plan, outputs, table_VD, constants, vocab, gradients=gradients
        )

        sums = jax.lax.psum(sums, layout.tokens)
        return sums, _summed_over_devices(layout, d_outputs, d_table_VD)

    tokens_spec: Any = P(layout.tokens)
    table_spec: Any = P(layout.vocab, layout.columns)
    sums, (d_outputs, d_table_VD) = jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(tokens_spec, table_spec, _constants_spec(layout, constants)),
        out_specs=(P(), (tokens_spec, table_spec)),
        axis_names=free_axes(layout.mesh),
        check_vma=False,
    )(outputs, padded(table_VD), constants)

    if d_table_VD is not None:
        d_table_VD = d_table_VD[:vocab_size]
    return sums, (d_outputs, d_table_VD)


def _constants_spec(layout: Layout, constants: Constants) -> Constants:
    """Partition specs in the places of the arrays."""
    tokens_spec: Any = P(layout.tokens)
    rows_spec: Any = P(layout.vocab)
    replicated: Any = P()

    # One spec stands for all arrays of cached labels: each has a row for a token.
    teacher_spec = tokens_spec
    if isinstance(constants.teacher, OnlineTeacher):
        teacher_spec = OnlineTeacher(tokens_spec, rows_spec)
    return Constants(tokens_spec, tokens_spec, replicated, replicated, teacher=teacher_spec)


def _summed_over_devices(
    layout: Layout, d_outputs: tuple[jax.Array, ...] | None, d_table_VD: jax.Array | None
) -> Gradients:
    """Of a device's gradients: hidden states have theirs from every part of the vocabulary, the
    table from every part of the tokens.
    """
    if d_outputs is None or d_table_VD is None:
        return d_outputs, d_table_VD

    if layout.vocab:
        d_outputs = jax.lax.psum(d_outputs, layout.vocab)

    # The axis that splits the columns is summed and split at once.
    if layout.columns:
        d_table_VD = jax.lax.psum_scatter(
            d_table_VD, layout.columns, scatter_dimension=1, tiled=True
        )
    other_axes = [axis for axis in layout.tokens if axis != layout.columns]
    return d_outputs, jax.lax.psum(d_table_VD, other_axes)
