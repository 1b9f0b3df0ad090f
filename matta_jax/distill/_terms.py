"""The terms of a chunk from its logits: values, and their gradients by formula.

With p = softmax(z / T) of the stream and q of its source, per token:

    labels           -log p_label             dz = p - y   (of several, their mean by shares)
    forward KL       T² KL(q‖p)               dz = T (p - q)
    reverse KL       T² KL(p‖q)               dz = T p (log p/q - KL(p‖q))
    Jensen-Shannon   T² (β KL(q‖m) + (1-β) KL(p‖m))       dz = T (1-β) p (log p/m - KL(p‖m))
    top k and tail   T² KL over k + 1 buckets dz = T (p - q) in the top k,  T (p - q_tail · p /
    p_tail) outside

The vocabulary may be split over devices; then only [chunk] vectors cross between them, in three
stacks: maxima, sums of exponentials with the logits at labels, and divergences.

Shape letters: C tokens of a chunk, V vocab (this device's part), K teacher's top k, M terms.
"""

import abc
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from matta_jax.distill._plan import Constants, LossPlan, Term, TopKTeacher
from matta_jax.distill._softmaxes import Softmaxes, Vocab, put


def chunk_terms(
    plan: LossPlan,
    logits: Sequence[jax.Array],
    constants: Constants,
    vocab: Vocab,
    *,
    gradients: bool,
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
    softmaxes = Softmaxes(plan, logits, constants, vocab)
    rules = [_make_rule(plan, term, softmaxes) for term in plan.terms]

    is_student_top_CV = _is_top(softmaxes, plan.student)
    is_ta_top_CV = _is_top(softmaxes, plan.ta)
    agree_C = jnp.any(is_student_top_CV & is_ta_top_CV, axis=-1).astype(jnp.float32)

    # All rows cross devices in one stack, behind them the agreement: an id that is the most likely
    # of both lies on some device.
    local_rows = [row_C for rule in rules for row_C in rule.rows]
    row_sums = iter(vocab.sum(jnp.stack([*local_rows, agree_C])))
    for rule in rules:
        rule.rows = [next(row_sums) for _ in rule.rows]
    agree_C = (next(row_sums) > 0).astype(jnp.float32)

    values = [rule.value() for rule in rules]
    values += [agree_C, jnp.ones_like(agree_C)]
    sums = jnp.stack([_weighted_sum(value_C, constants.weights) for value_C in values])
    if not gradients:
        return sums, None
    return sums, _logit_gradients(plan, rules, logits, constants)


def _is_top(softmaxes: Softmaxes, stream: int) -> jax.Array:
    """Of each column [C, V], whether it is a most likely id."""
    return softmaxes.z[stream] >= softmaxes.z_max[stream][:, None]


def _weighted_sum(value_C: jax.Array, weights_C: jax.Array) -> jax.Array:
    """A token of weight 0 counts for nothing, also where its value is NaN."""
    return jnp.sum(jnp.where(weights_C != 0, value_C * weights_C, 0.0))


def _logit_gradients(
    plan: LossPlan, rules: "Sequence[_Rule]", logits: Sequence[jax.Array], constants: Constants
) -> tuple[jax.Array, ...]:
    """Returns dz [C, V] of each stream: the sum over the terms that train it."""
    scales_MC = constants.term_weights[:, None] * (constants.weights / constants.total)

    d_logits = []
    for stream, z_CV in enumerate(logits):
        term_gradients = []
        for term, rule, scale_C in zip(plan.terms, rules, scales_MC, strict=True):
            if term.stream == stream:
                term_gradients.append(rule.gradient(scale_C[:, None]))

        if term_gradients:
            d_logits.append(functools.reduce(jnp.add, term_gradients))
        else:
            d_logits.append(jnp.zeros_like(z_CV))
    return tuple(d_logits)


class _Rule(abc.ABC):
    """The formula of a term.

    Attributes:
      rows: vectors [C] that `value` and `gradient` need summed over the whole vocabulary; summed in
        between.
    """

    def __init__(self, plan: LossPlan, term: Term, softmaxes: Softmaxes):
        self.plan = plan
        self.softmaxes = softmaxes
        self.stream = term.stream
        self.T = term.temperature
        self.rows: list[jax.Array] = []

    @abc.abstractmethod
    def value(self) -> jax.Array:
        """Returns the value [C]."""

    @abc.abstractmethod
    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        """Returns scale · d value / dz [C, V]."""


class _CrossEntropy(_Rule):
    def value(self) -> jax.Array:
        return -self.softmaxes.label_log_p(self.stream)

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        log_p_CV = self.softmaxes.log_p(self.stream, 1.0)

        # A comparison that the compiler fuses: the one-hot labels are never an array.
        columns_V = jnp.arange(log_p_CV.shape[-1])
        gradient_CV = scale_C1 * jnp.exp(log_p_CV)
        shares_CL = self.softmaxes.label_shares
        for i, columns_C in enumerate(self.softmaxes.label_columns.T):
            is_label_CV = columns_V == columns_C[:, None]
            part_C1 = scale_C1 if shares_CL is None else scale_C1 * shares_CL[:, i, None]
            gradient_CV -= jnp.where(is_label_CV, part_C1, 0.0)
        return gradient_CV


class _Divergence(_Rule):
    """From the source's q to the stream's p; by default one row, scaled by T²."""

    def __init__(self, plan: LossPlan, term: Term, softmaxes: Softmaxes):
        super().__init__(plan, term, softmaxes)
        self.log_p_CV = softmaxes.log_p(self.stream, self.T)
        self.log_q_CV = softmaxes.log_p(softmaxes.source(plan, term), self.T)

    def value(self) -> jax.Array:
        return self.T**2 * self.rows[0]


class _ForwardKL(_Divergence):
    def __init__(self, plan: LossPlan, term: Term, softmaxes: Softmaxes):
        super().__init__(plan, term, softmaxes)
        self.rows = [_kl(self.log_q_CV, self.log_p_CV)]

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        scale_C1 = self.T * scale_C1
        return scale_C1 * (jnp.exp(self.log_p_CV) - jnp.exp(self.log_q_CV))


class _ReverseKL(_Divergence):
    def __init__(self, plan: LossPlan, term: Term, softmaxes: Softmaxes):
        super().__init__(plan, term, softmaxes)
        self.rows = [_kl(self.log_p_CV, self.log_q_CV)]

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        # The mean of log p/q under p is the divergence itself.
        divergence_C = self.rows[0]
        excess_CV = self.log_p_CV - self.log_q_CV - divergence_C[:, None]

        scale_C1 = self.T * scale_C1
        return scale_C1 * jnp.exp(self.log_p_CV) * excess_CV


class _JensenShannon(_Divergence):
    def __init__(self, plan: LossPlan, term: Term, softmaxes: Softmaxes):
        super().__init__(plan, term, softmaxes)
        self.log_m_CV = jnp.logaddexp(
            self.log_q_CV + jnp.log(plan.beta), self.log_p_CV + jnp.log1p(-plan.beta)
        )
        self.rows = [_kl(self.log_q_CV, self.log_m_CV), _kl(self.log_p_CV, self.log_m_CV)]

    def value(self) -> jax.Array:
        beta = self.plan.beta
        source_to_mean_C, stream_to_mean_C = self.rows
        return self.T**2 * (beta * source_to_mean_C + (1 - beta) * stream_to_mean_C)

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        divergence_C = self.rows[1]
        excess_CV = self.log_p_CV - self.log_m_CV - divergence_C[:, None]

        scale_C1 = (1 - self.plan.beta) * self.T * scale_C1
        return scale_C1 * jnp.exp(self.log_p_CV) * excess_CV


class _TopK(_Rule):
    """Forward KL over the Teacher's top k and a ghost bucket for the tail."""

    def _buckets(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns log q and log p of the top k [C, k], and of the tail [C]."""
        teacher = self.softmaxes.constants.teacher
        assert isinstance(teacher, TopKTeacher)

        log_p_CK, log_p_tail_C = self.softmaxes.top_k_log_p(self.stream, self.T)
        log_q_CK = teacher.log_probs.astype(jnp.float32)
        log_q_tail_C = teacher.tail.astype(jnp.float32)
        return log_q_CK, log_p_CK, log_q_tail_C, log_p_tail_C

    def value(self) -> jax.Array:
        log_q_CK, log_p_CK, log_q_tail_C, log_p_tail_C = self._buckets()

        # Without a tail the product would be 0 · -inf.
        no_tail_C = jnp.isneginf(log_q_tail_C)
        q_tail_C = jnp.exp(log_q_tail_C)
        finite_log_q_C = jnp.where(no_tail_C, 0.0, log_q_tail_C)
        tail_C = q_tail_C * (finite_log_q_C - log_p_tail_C)

        top_k_C = _kl(log_q_CK, log_p_CK)
        return self.T**2 * (top_k_C + jnp.where(no_tail_C, 0.0, tail_C))

    def gradient(self, scale_C1: jax.Array) -> jax.Array:
        log_q_CK, log_p_CK, log_q_tail_C, log_p_tail_C = self._buckets()
        columns_CK = self.softmaxes.teacher_columns
        assert columns_CK is not None

        # Outside of the top k, the Teacher's tail is shared out as the stream shares its own.
        log_p_CV = self.softmaxes.log_p(self.stream, self.T)
        p_CV = jnp.exp(log_p_CV)
        log_ratio_C = log_q_tail_C - log_p_tail_C
        outside_CV = p_CV - jnp.exp(log_p_CV + log_ratio_C[:, None])

        inside_CK = jnp.exp(log_p_CK) - jnp.exp(log_q_CK)
        return self.T * scale_C1 * put(outside_CV, columns_CK, inside_CK)


def _kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    """KL(a‖b) over the last axis."""
    return jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)


_DIVERGENCES: dict[str, type[_Rule]] = {
    "forward_kl": _ForwardKL,
    "reverse_kl": _ReverseKL,
    "jensen_shannon": _JensenShannon,
}


def _make_rule(plan: LossPlan, term: Term, softmaxes: Softmaxes) -> _Rule:
    if term.target == "labels":
        return _CrossEntropy(plan, term, softmaxes)
    if term.target == "ta":
        return _DIVERGENCES[plan.divergence](plan, term, softmaxes)
    if softmaxes.teacher_columns is None:
        return _ForwardKL(plan, term, softmaxes)
    return _TopK(plan, term, softmaxes)
