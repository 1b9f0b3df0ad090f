"""The nested distillation loss in one pass over the vocabulary, never materialising logits
(architecture, decision 8).

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

from matta_jax.distill._plan import Constants, OnlineTeacher, Plan, Teacher, TopKTeacher
from matta_jax.distill._terms import Vocab, chunk_terms
from matta_jax.errors import UserError
from matta_jax.sharding import Layout


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


def nested_loss(
    plan: Plan,
    outputs: Sequence[jax.Array],
    table_VD: jax.Array | None,
    labels_N: jax.Array,
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
      labels_N: target ids. An id outside the vocabulary makes the loss NaN, unless its weight is 0.
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
    _check(plan, len(outputs), vocab_size, teacher)
    total = jnp.asarray(total, jnp.float32)
    constants = Constants(labels_N, weights_N.astype(jnp.float32), term_weights_M, total, teacher)
    loss, sums = _fused(plan, tuple(outputs), table_VD, constants)
    sums = jax.lax.stop_gradient(sums)
    return Losses(loss, sums=sums[:-2], agreement=sums[-2], count=sums[-1])


def as_softmax(logits: jax.Array) -> jax.Array:
    """Returns float32 logits [N, classes]; a sigmoid of z [N] is the softmax of two classes with
    logits 0 and z.
    """
    logits = logits.astype(jnp.float32)
    return logits if logits.ndim == 2 else jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def _check(plan: Plan, num_streams: int, vocab_size: int, teacher: Teacher | None) -> None:
    for term in plan.terms:
        if term.target == "ta" and (num_streams == 1 or term.stream == plan.ta):
            raise UserError(
                f"the term {term.name!r} distils from the TA, but stream {term.stream} of "
                f"{num_streams} is the TA "
                "itself; drop the term (weight 0), or nest the Student in a larger TA"
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
                f"{teacher.temperature} at which "
                "the Teacher's labels were captured; set it so, or capture them again"
            )
    if isinstance(teacher, OnlineTeacher) and teacher.head.shape[0] != vocab_size:
        raise UserError(
            f"the Teacher's vocabulary of {teacher.head.shape[0]} ids must be the Student's of "
            f"{vocab_size}; "
            "use a Teacher with the same tokenizer"
        )
    if isinstance(teacher, TopKTeacher) and not isinstance(teacher.ids, jax.core.Tracer):
        largest = int(np.max(np.asarray(teacher.ids), initial=0))
        if largest >= vocab_size:
            raise UserError(
                f"the Teacher's top-k id {largest} must be below the Student's vocabulary of "
                f"{vocab_size}; "
                "use labels of the same tokenizer"
            )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    plan: Plan, outputs: tuple[jax.Array, ...], table_VD: jax.Array | None, constants: Constants
):
    return _run(plan, outputs, table_VD, constants, gradients=False)[0]


def _fused_forward(
    plan: Plan, outputs: tuple[jax.Array, ...], table_VD: jax.Array | None, constants: Constants
):
    return _run(plan, outputs, table_VD, constants, gradients=True)


def _fused_backward(plan: Plan, gradients: tuple[Any, Any], cotangents: tuple[jax.Array, ...]):
    scaled = jax.tree.map(
        lambda gradient: (cotangents[0] * gradient).astype(gradient.dtype), gradients
    )
    return *scaled, None


_fused.defvjp(_fused_forward, _fused_backward)


def _run(plan: Plan, outputs, table_VD, constants: Constants, *, gradients: bool):
    """Returns (loss, sums [M + 2]), and (gradients of the outputs, gradient of the
    table) or Nones.
    """
    if table_VD is None:
        sums, d_outputs = chunk_terms(
            plan, outputs, constants, Vocab(outputs[0].shape[1]), gradients=gradients
        )
        d_table = None
    elif plan.layout is None:
        vocab = Vocab(table_VD.shape[0])
        sums, d_outputs, d_table = _scan(
            plan, outputs, table_VD, constants, vocab, gradients=gradients
        )
    else:
        sums, d_outputs, d_table = _sharded(
            plan, plan.layout, outputs, table_VD, constants, gradients=gradients
        )
    loss = jnp.sum(sums[:-2] * constants.term_weights) / constants.total
    return (loss, sums), (d_outputs, None if d_table is None else d_table.astype(table_VD.dtype))


def _sharded(
    plan: Plan, layout: Layout, outputs, table_VD, constants: Constants, *, gradients: bool
):
    """`_scan` on each device, over its tokens and its rows of the table. Collectives stand outside
    the loop.
    """
    vocab_size = table_VD.shape[0]
    parts = layout.mesh.shape[layout.vocab] if layout.vocab else 1
    rows = -(-vocab_size // parts)

    def padded(table: jax.Array) -> jax.Array:
        return jnp.pad(table, ((0, rows * parts - vocab_size), (0, 0)))

    tokens: Any = P(layout.tokens)
    whole: Any = P()
    rows_alone: Any = P(layout.vocab)
    table_spec = P(layout.vocab, layout.columns)
    constants_spec = Constants(tokens, tokens, whole, whole, teacher=tokens)
    if isinstance(constants.teacher, OnlineTeacher):
        teacher = OnlineTeacher(constants.teacher.hidden, padded(constants.teacher.head))
        constants = dataclasses.replace(constants, teacher=teacher)
        constants_spec = dataclasses.replace(
            constants_spec, teacher=OnlineTeacher(tokens, rows_alone)
        )

    def on_device(outputs, table_VD, constants):
        table_VD = table_VD.astype(
            outputs[0].dtype
        )  # Before the gather, which may so be half the bytes.
        if layout.columns:
            table_VD = jax.lax.all_gather(table_VD, layout.columns, axis=1, tiled=True)
        start = jax.lax.axis_index(layout.vocab) * rows if layout.vocab else 0
        vocab = Vocab(vocab_size, start, layout.vocab)
        sums, d_outputs, d_table = _scan(
            plan, outputs, table_VD, constants, vocab, gradients=gradients
        )
        sums = jax.lax.psum(sums, layout.tokens)
        if gradients:
            if layout.vocab:
                d_outputs = jax.lax.psum(d_outputs, layout.vocab)
            if layout.columns:
                d_table = jax.lax.psum_scatter(
                    d_table, layout.columns, scatter_dimension=1, tiled=True
                )
            d_table = jax.lax.psum(
                d_table, [axis for axis in layout.tokens if axis != layout.columns]
            )
        return sums, d_outputs, d_table

    sums, d_outputs, d_table = jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(tokens, table_spec, constants_spec),
        out_specs=(P(), tokens, table_spec),
        check_vma=False,
    )(outputs, padded(table_VD), constants)
    return sums, d_outputs, None if d_table is None else d_table[:vocab_size]


def _scan(plan: Plan, outputs, table_VD, constants: Constants, vocab: Vocab, *, gradients: bool):
    """Returns the sums [M + 2] of `chunk_terms`, and gradients of the hidden states and of the
    table (float32).
    """
    num_tokens, dtype = outputs[0].shape[0], outputs[0].dtype
    num_chunks = -(-num_tokens // plan.chunk_size)
    chunk = -(-num_tokens // num_chunks)
    pad = num_chunks * chunk - num_tokens

    def in_chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)) if pad else x
        return x.reshape(num_chunks, chunk, *x.shape[1:])

    groups: dict[int, list[int]] = {}  # Streams of equal width share one matmul.
    for stream, hidden_ND in enumerate(outputs):
        groups.setdefault(hidden_ND.shape[1], []).append(stream)
    tables = {
        width: table_VD[:, :width].astype(dtype) for width in groups
    }  # Sliced and cast once, not in the loop.
    teacher = constants.teacher
    head = teacher.head if isinstance(teacher, OnlineTeacher) else None
    teacher_per_token = teacher.hidden if isinstance(teacher, OnlineTeacher) else teacher

    def step(d_table_VD, per_token):
        hidden, labels, weights, teacher = per_token
        teacher = teacher if head is None else OnlineTeacher(teacher, head)
        here = dataclasses.replace(constants, labels=labels, weights=weights, teacher=teacher)
        stacked = {
            width: jnp.concatenate([hidden[k] for k in group]) for width, group in groups.items()
        }
        logits: dict[int, jax.Array] = {}
        for width, group in groups.items():
            z_NV = _matmul("nd,vd->nv", stacked[width], tables[width])
            logits.update(zip(group, z_NV.reshape(len(group), chunk, -1), strict=True))
        sums, d_logits = chunk_terms(
            plan, [logits[k] for k in range(len(hidden))], here, vocab, gradients=gradients
        )
        if d_logits is None:
            return None, (sums, None)
        d_hidden: dict[int, jax.Array] = {}
        for width, group in groups.items():
            dz_NV = jnp.concatenate([d_logits[k] for k in group]).astype(dtype)
            d_stacked = _matmul("nv,vd->nd", dz_NV, tables[width]).astype(dtype)
            d_hidden.update(zip(group, d_stacked.reshape(len(group), chunk, width), strict=True))
            # Not .at[].add: XLA of jaxlib 0.11.2 crashes when it compiles that scatter in a
            # shard_map on CPUs.
            own_VD = d_table_VD[:, :width] + _matmul("nv,nd->vd", dz_NV, stacked[width])
            d_table_VD = jax.lax.dynamic_update_slice(d_table_VD, own_VD, (0, 0))
        return d_table_VD, (sums, [d_hidden[k] for k in range(len(hidden))])

    start = jnp.zeros(table_VD.shape, jnp.float32) if gradients else None
    per_token = (outputs, constants.labels, constants.weights, teacher_per_token)
    d_table_VD, (sums, d_hidden) = jax.lax.scan(step, start, jax.tree.map(in_chunks, per_token))
    if gradients:
        d_hidden = tuple(d_KCD.reshape(-1, d_KCD.shape[-1])[:num_tokens] for d_KCD in d_hidden)
    return jnp.sum(sums, axis=0), d_hidden, d_table_VD


def _matmul(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
