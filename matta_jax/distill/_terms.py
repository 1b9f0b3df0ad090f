"""The terms of a chunk from its logits: values, and their gradients by formula.

With p = softmax(z / T) of the stream and q of its source, per token:

    labels           -log p_label             dz = p - y
    forward KL       T² KL(q‖p)               dz = T (p - q)
    reverse KL       T² KL(p‖q)               dz = T p (log p/q - KL(p‖q))
    Jensen-Shannon   T² (β KL(q‖m) + (1-β) KL(p‖m))       dz = T (1-β) p (log p/m - KL(p‖m))
    top k and tail   T² KL over k + 1 buckets dz = T (p - q) in the top k,  T (p - q_tail · p /
    p_tail) outside

The vocabulary may be split over devices; then only [chunk] vectors cross between them, in three
stacks: maxima, sums of exponentials with the logits at labels, and divergences.

Shape letters: C tokens of a chunk, V vocab (this device's part), K teacher's top k, M terms, R rows
that cross devices.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.distill._plan import Constants, OnlineTeacher, Plan, Term, TopKTeacher

_NO_MASS = -1e30  # A logit of a column that is none; finite, so that 0 · (log p - log q) is 0.


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Which part of the vocabulary the columns at hand are.

    Attributes:
      size: ids of the whole vocabulary.
      start: id of the first column.
      axis: mesh axis over which the columns are split; None: all are here.
    """

    size: int
    start: jax.Array | int = 0
    axis: str | None = None

    def sum(self, x: jax.Array) -> jax.Array:
        """Adds up over the devices that share the vocabulary."""
        return jax.lax.psum(x, self.axis) if self.axis else x

    def max(self, x: jax.Array) -> jax.Array:
        """Largest over the devices that share the vocabulary."""
        return jax.lax.pmax(x, self.axis) if self.axis else x

    def mask(self, z_CV: jax.Array) -> jax.Array:
        """Takes the mass from columns that only pad the vocabulary to its devices."""
        if self.axis is None:
            return z_CV
        return jnp.where(self.start + jnp.arange(z_CV.shape[-1]) < self.size, z_CV, _NO_MASS)

    def columns(self, ids: jax.Array, width: int) -> jax.Array:
        """Returns the column of each id, or `width` where it is not here, which gathers and
        scatters drop.
        """
        column = ids - self.start
        return jnp.where((column >= 0) & (column < width), column, width)


def chunk_terms(
    plan: Plan, logits: Sequence[jax.Array], constants: Constants, vocab: Vocab, *, gradients: bool
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
    """Computes all terms of a chunk.

    Args:
      plan: the terms.
      logits: float32 [C, V] of each stream.
      constants: labels, weights and Teacher of the chunk's tokens.
      vocab: what the columns stand for.
      gradients: whether to make them.

    Returns:
      Weighted sums over the chunk [M + 2], of each term, the agreement and 1; and dz [C, V] of each
      stream, or None.
    """
    soft = _Softmaxes(plan, logits, constants, vocab)
    rules = [_rule(plan, term, soft) for term in plan.terms]
    is_top = [soft.z[i] >= soft.top[i][:, None] for i in (plan.student, plan.ta)]
    agree_C = jnp.any(is_top[0] & is_top[1], axis=-1).astype(jnp.float32)
    crossed = iter(
        vocab.sum(jnp.stack([row_C for rule in rules for row_C in rule.rows] + [agree_C]))
    )
    for rule in rules:
        rule.rows = [next(crossed) for _ in rule.rows]
    agree_C = (next(crossed) > 0).astype(jnp.float32)
    values = [*(rule.value() for rule in rules), agree_C, jnp.ones_like(agree_C)]

    weights_C = constants.weights

    sums = jnp.stack(
        [jnp.sum(jnp.where(weights_C != 0, value_C * weights_C, 0.0)) for value_C in values]
    )
    if not gradients:
        return sums, None
    scales_MC = constants.term_weights[:, None] * (weights_C / constants.total)
    d_logits = []
    for stream, z_CV in enumerate(logits):
        own = [
            rule.gradient(scale_C[:, None])
            for term, rule, scale_C in zip(plan.terms, rules, scales_MC, strict=True)
            if term.stream == stream
        ]
        d_logits.append(functools.reduce(jnp.add, own) if own else jnp.zeros_like(z_CV))
    return sums, tuple(d_logits)


class _Softmaxes:
    """The log-sum-exps of a chunk at every temperature in use, shared by all terms.

    Attributes:
      z: logits [C, V] of each stream, and behind them an online Teacher's.
      top: their maxima [C].
      label_columns: [C]; and of the Teacher's top k:
      teacher_columns: [C, k], or None.
    """

    def __init__(self, plan: Plan, logits: Sequence[jax.Array], constants: Constants, vocab: Vocab):
        self.constants, self.vocab = constants, vocab
        self.z = [vocab.mask(z_CV) for z_CV in logits]
        width = self.z[0].shape[-1]
        teacher = constants.teacher
        if isinstance(teacher, OnlineTeacher):
            head = teacher.head.astype(teacher.hidden.dtype)
            teacher_z_CV = jnp.einsum(
                "cd,vd->cv", teacher.hidden, head, preferred_element_type=jnp.float32
            )
            self.z.append(vocab.mask(teacher_z_CV))
        self.label_columns = vocab.columns(constants.labels, width)
        self.teacher_columns = (
            vocab.columns(teacher.ids, width) if isinstance(teacher, TopKTeacher) else None
        )
        self.top = list(vocab.max(jnp.stack([jnp.max(z_CV, axis=-1) for z_CV in self.z])))
        partial_CR: dict[tuple[Any, ...], jax.Array] = {}
        for term in plan.terms:
            partial_CR |= self._partial(plan, term)
        widths = [x.shape[-1] for x in partial_CR.values()]
        ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
        whole_CR = vocab.sum(jnp.concatenate(list(partial_CR.values()), axis=-1))
        self._whole = dict(zip(partial_CR, jnp.split(whole_CR, ends, axis=-1), strict=True))

    def source(self, plan: Plan, term: Term) -> int:
        """Index of the logits that a term distils from."""
        return plan.ta if term.target == "ta" else len(self.z) - 1

    def _partial(self, plan: Plan, term: Term) -> dict[tuple[Any, ...], jax.Array]:
        """What a term needs summed over the vocabulary, as columns [C, R]."""
        own, T = term.stream, term.temperature
        if term.target == "labels":
            return {
                ("label", own): _take(self.z[own], self.label_columns[:, None]),
                **self._partial_sum(own, 1.0),
            }
        if term.target == "ta" or self.teacher_columns is None:
            return self._partial_sum(own, T) | self._partial_sum(self.source(plan, term), T)
        # The tail is summed by itself: as 1 - (sum of the top k) it would lose all its digits when
        # it is small.
        tail_C = jnp.sum(_put(self._exp(own, T), self.teacher_columns, 0.0), axis=-1, keepdims=True)
        top_k = {("top_k", own): _take(self.z[own], self.teacher_columns), ("tail", own, T): tail_C}
        return self._partial_sum(own, T) | top_k

    def _partial_sum(self, index: int, T: float) -> dict[tuple[Any, ...], jax.Array]:
        return {("sum", index, T): jnp.sum(self._exp(index, T), axis=-1, keepdims=True)}

    def _exp(self, index: int, T: float) -> jax.Array:
        return jnp.exp((self.z[index] - self.top[index][:, None]) / T)

    def log_sum_exp(self, index: int, T: float) -> jax.Array:
        """Of logits / T [C]."""
        return self.top[index] / T + jnp.log(self._whole["sum", index, T][:, 0])

    def log_p(self, index: int, T: float) -> jax.Array:
        """Log-probabilities [C, V] at temperature T."""
        return self.z[index] / T - self.log_sum_exp(index, T)[:, None]

    def label_log_p(self, index: int) -> jax.Array:
        """Log-probability [C] of the label; NaN where it is no id."""
        known_C = (self.constants.labels >= 0) & (self.constants.labels < self.vocab.size)
        log_p_C = self._whole["label", index][:, 0] - self.log_sum_exp(index, 1.0)
        return jnp.where(known_C, log_p_C, jnp.nan)

    def top_k_log_p(self, index: int, T: float) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities [C, k] of the Teacher's ids, and the log-mass [C] of all others."""
        log_sum_C = self.log_sum_exp(index, T)
        tail_C = jnp.maximum(self._whole["tail", index, T][:, 0], jnp.finfo(jnp.float32).tiny)
        log_tail_C = self.top[index] / T + jnp.log(tail_C) - log_sum_C
        return self._whole["top_k", index] / T - log_sum_C[:, None], log_tail_C


def _take(z_CV: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns z at columns [C, k], 0 where a column is not here."""
    return jnp.take_along_axis(z_CV, columns, axis=-1, mode="fill", fill_value=0)


def _put(x_CV: jax.Array, columns_CK: jax.Array, values: jax.Array | float) -> jax.Array:
    """Returns x with values set at columns [C, k]; columns that are not here are dropped."""
    return x_CV.at[jnp.arange(x_CV.shape[0])[:, None], columns_CK].set(values, mode="drop")


class _Rule(abc.ABC):
    """The formula of a term.

    Attributes:
      rows: vectors [C] that `value` and `gradient` need summed over the whole vocabulary; summed in
        between.
    """

    def __init__(self, plan: Plan, term: Term, soft: _Softmaxes):
        self.plan, self.soft, self.stream, self.T = plan, soft, term.stream, term.temperature
        self.rows: list[jax.Array] = []

    @abc.abstractmethod
    def value(self) -> jax.Array:
        """Returns the value [C]."""

    @abc.abstractmethod
    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        """Returns scale · d value / dz [C, V]."""


class _CrossEntropy(_Rule):
    def value(self) -> jax.Array:
        return -self.soft.label_log_p(self.stream)

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        log_p_CV = self.soft.log_p(self.stream, 1.0)
        is_label_CV = (
            jnp.arange(log_p_CV.shape[-1]) == self.soft.label_columns[:, None]
        )  # Fused, never an array.
        return scale_C1 * jnp.exp(log_p_CV) - jnp.where(is_label_CV, scale_C1, 0.0)


class _Divergence(_Rule):
    """From the source's q to the stream's p; by default one row, scaled by T²."""

    def __init__(self, plan: Plan, term: Term, soft: _Softmaxes):
        super().__init__(plan, term, soft)
        self.log_p_CV = soft.log_p(self.stream, self.T)
        self.log_q_CV = soft.log_p(soft.source(plan, term), self.T)

    def value(self) -> jax.Array:
        return self.T**2 * self.rows[0]


class _ForwardKL(_Divergence):
    def __init__(self, plan: Plan, term: Term, soft: _Softmaxes):
        super().__init__(plan, term, soft)
        self.rows = [_kl(self.log_q_CV, self.log_p_CV)]

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        return self.T * scale_C1 * (jnp.exp(self.log_p_CV) - jnp.exp(self.log_q_CV))


class _ReverseKL(_Divergence):
    def __init__(self, plan: Plan, term: Term, soft: _Softmaxes):
        super().__init__(plan, term, soft)
        self.rows = [_kl(self.log_p_CV, self.log_q_CV)]

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        excess_CV = self.log_p_CV - self.log_q_CV - self.rows[0][:, None]
        return self.T * scale_C1 * jnp.exp(self.log_p_CV) * excess_CV


class _JensenShannon(_Divergence):
    def __init__(self, plan: Plan, term: Term, soft: _Softmaxes):
        super().__init__(plan, term, soft)
        self.log_m_CV = jnp.logaddexp(
            self.log_q_CV + jnp.log(plan.beta), self.log_p_CV + jnp.log1p(-plan.beta)
        )
        self.rows = [_kl(self.log_q_CV, self.log_m_CV), _kl(self.log_p_CV, self.log_m_CV)]

    def value(self) -> jax.Array:
        return self.T**2 * (self.plan.beta * self.rows[0] + (1 - self.plan.beta) * self.rows[1])

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        excess_CV = self.log_p_CV - self.log_m_CV - self.rows[1][:, None]
        return (1 - self.plan.beta) * self.T * scale_C1 * jnp.exp(self.log_p_CV) * excess_CV


class _TopK(_Rule):
    """Forward KL over the Teacher's top k and a ghost bucket for the tail."""

    def _buckets(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns log q and log p of the top k [C, k], and of the tail [C]."""
        teacher = self.soft.constants.teacher
        assert isinstance(teacher, TopKTeacher)
        log_p_CK, log_p_tail_C = self.soft.top_k_log_p(self.stream, self.T)
        return (
            teacher.log_probs.astype(jnp.float32),
            log_p_CK,
            teacher.tail.astype(jnp.float32),
            log_p_tail_C,
        )

    def value(self) -> jax.Array:
        log_q_CK, log_p_CK, log_q_tail_C, log_p_tail_C = self._buckets()
        no_tail_C = jnp.isneginf(log_q_tail_C)
        tail_C = jnp.exp(log_q_tail_C) * (jnp.where(no_tail_C, 0.0, log_q_tail_C) - log_p_tail_C)
        return self.T**2 * (_kl(log_q_CK, log_p_CK) + jnp.where(no_tail_C, 0.0, tail_C))

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        log_q_CK, log_p_CK, log_q_tail_C, log_p_tail_C = self._buckets()
        log_p_CV = self.soft.log_p(self.stream, self.T)
        outside_CV = jnp.exp(log_p_CV) - jnp.exp(log_p_CV + (log_q_tail_C - log_p_tail_C)[:, None])
        assert self.soft.teacher_columns is not None
        inside_CK = jnp.exp(log_p_CK) - jnp.exp(log_q_CK)
        return self.T * scale_C1 * _put(outside_CV, self.soft.teacher_columns, inside_CK)


def _kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)


_DIVERGENCES: dict[str, type[_Rule]] = {
    "forward_kl": _ForwardKL,
    "reverse_kl": _ReverseKL,
    "jensen_shannon": _JensenShannon,
}


def _rule(plan: Plan, term: Term, soft: _Softmaxes) -> _Rule:
    if term.target == "labels":
        return _CrossEntropy(plan, term, soft)
    if term.target == "ta":
        return _DIVERGENCES[plan.divergence](plan, term, soft)
    return (_ForwardKL if soft.teacher_columns is None else _TopK)(plan, term, soft)
