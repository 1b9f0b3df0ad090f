"""The softmaxes of a chunk of tokens, over a vocabulary that may be split over devices.

Shape letters: C tokens of a chunk, V vocab (this device's part), K teacher's top k, R columns of
sums that cross devices, L labels of a token.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from matta_jax.distill._plan import (
    Constants,
    LossPlan,
    OnlineTeacher,
    SoftLabels,
    Term,
    TopKTeacher,
)

# The logit of a column that is none; finite, so that 0 · (log p - log q) is 0.
_NO_MASS = -1e30

# What is summed over the vocabulary: its kind, the index of its logits, its temperature.
_Key = tuple[str, int, float]


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
        if self.axis is None:
            return x
        return jax.lax.psum(x, self.axis)

    def max(self, x: jax.Array) -> jax.Array:
        """Largest over the devices that share the vocabulary."""
        if self.axis is None:
            return x
        return jax.lax.pmax(x, self.axis)

    def mask(self, z_CV: jax.Array) -> jax.Array:
        """Takes the mass from columns that only pad the vocabulary to its devices."""
        if self.axis is None:
            return z_CV
        ids_V = self.start + jnp.arange(z_CV.shape[-1])
        return jnp.where(ids_V < self.size, z_CV, _NO_MASS)

    def columns(self, ids: jax.Array, width: int) -> jax.Array:
        """Returns the column of each id, or `width` where it is not here, which gathers and
        scatters drop.
        """
        columns = ids - self.start
        is_here = (columns >= 0) & (columns < width)
        return jnp.where(is_here, columns, width)


class Softmaxes:
    """The log-sum-exps of a chunk at every temperature in use, shared by all terms.

    Attributes:
      z: logits [C, V] of each stream, and behind them an online Teacher's.
      z_max: their maxima [C].
      label_columns: [C, L]; and of the Teacher's top k:
      teacher_columns: [C, k], or None.
      label_shares: [C, L]; None: each token has one label.
    """

    def __init__(
        self, plan: LossPlan, logits: Sequence[jax.Array], constants: Constants, vocab: Vocab
    ):
        self.constants = constants
        self.vocab = vocab
        self.z = [vocab.mask(z_CV) for z_CV in logits]
        self.teacher_columns: jax.Array | None = None
        width = self.z[0].shape[-1]

        teacher = constants.teacher
        if isinstance(teacher, OnlineTeacher):
            self.z.append(vocab.mask(_teacher_logits(teacher)))

        self.label_shares: jax.Array | None = None
        if isinstance(constants.labels, SoftLabels):
            self._label_ids = constants.labels.ids
            self.label_shares = constants.labels.shares
        else:
            self._label_ids = constants.labels[:, None]
        self.label_columns = vocab.columns(self._label_ids, width)
        if isinstance(teacher, TopKTeacher):
            self.teacher_columns = vocab.columns(teacher.ids, width)

        local_maxima = [jnp.max(z_CV, axis=-1) for z_CV in self.z]
        self.z_max = list(vocab.max(jnp.stack(local_maxima)))

        # Two terms may need the same sum: the key makes one of it.
        local_sums: dict[_Key, jax.Array] = {}
        for term in plan.terms:
            local_sums |= self._local_sums(plan, term)
        self._sums = _sum_over_devices(local_sums, vocab)

    def source(self, plan: LossPlan, term: Term) -> int:
        """Index of the logits that a term distils from."""
        if term.target == "ta":
            return plan.ta
        return len(self.z) - 1

    def log_sum_exp(self, index: int, T: float) -> jax.Array:
        """Of logits / T [C]."""
        scaled_max_C = self.z_max[index] / T
        sum_C = self._sums["sum", index, T][:, 0]
        return scaled_max_C + jnp.log(sum_C)

    def log_p(self, index: int, T: float) -> jax.Array:
        """Log-probabilities [C, V] at temperature T."""
        return self.z[index] / T - self.log_sum_exp(index, T)[:, None]

    def label_log_p(self, index: int) -> jax.Array:
        """Log-probability [C] of the label, of several the mean by their shares; NaN where one is
        no id.
        """
        is_id_CL = (self._label_ids >= 0) & (self._label_ids < self.vocab.size)
        label_z_CL = self._sums["label", index, 1.0]
        log_p_CL = label_z_CL - self.log_sum_exp(index, 1.0)[:, None]
        log_p_CL = jnp.where(is_id_CL, log_p_CL, jnp.nan)
        if self.label_shares is None:
            return log_p_CL[:, 0]
        return jnp.sum(self.label_shares * log_p_CL, axis=-1)

    def top_k_log_p(self, index: int, T: float) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities [C, k] of the Teacher's ids, and the log-mass [C] of all others."""
        log_sum_C = self.log_sum_exp(index, T)

        # The least positive number keeps the logarithm of an empty tail finite.
        tail_C = self._sums["tail", index, T][:, 0]
        tail_C = jnp.maximum(tail_C, jnp.finfo(jnp.float32).tiny)
        log_tail_C = self.z_max[index] / T + jnp.log(tail_C) - log_sum_C

        top_k_z_CK = self._sums["top_k", index, T]
        return top_k_z_CK / T - log_sum_C[:, None], log_tail_C

    def _local_sums(self, plan: LossPlan, term: Term) -> dict[_Key, jax.Array]:
        """What a term needs summed over the vocabulary: this device's part, as columns [C, R]."""
        stream = term.stream
        T = term.temperature

        if term.target == "labels":
            label_z_CL = _take(self.z[stream], self.label_columns)
            return {("label", stream, 1.0): label_z_CL, **self._local_sum_exp(stream, 1.0)}

        if term.target == "ta" or self.teacher_columns is None:
            stream_sum = self._local_sum_exp(stream, T)
            source_sum = self._local_sum_exp(self.source(plan, term), T)
            return stream_sum | source_sum

        # The tail is summed by itself: as 1 - (sum of the top k) it would lose all its digits when
        # it is small.
        outside_CV = put(self._exp(stream, T), self.teacher_columns, 0.0)
        tail_C1 = jnp.sum(outside_CV, axis=-1, keepdims=True)
        top_k_z_CK = _take(self.z[stream], self.teacher_columns)
        return {
            **self._local_sum_exp(stream, T),
            ("top_k", stream, T): top_k_z_CK,
            ("tail", stream, T): tail_C1,
        }

    def _local_sum_exp(self, index: int, T: float) -> dict[_Key, jax.Array]:
        sum_C1 = jnp.sum(self._exp(index, T), axis=-1, keepdims=True)
        return {("sum", index, T): sum_C1}

    def _exp(self, index: int, T: float) -> jax.Array:
        """Of (z - max z) / T [C, V], which cannot overflow."""
        return jnp.exp((self.z[index] - self.z_max[index][:, None]) / T)


def put(x_CV: jax.Array, columns_CK: jax.Array, values: jax.Array | float) -> jax.Array:
    """Returns x with values set at columns [C, k]; columns that are not here are dropped."""
    rows_C1 = jnp.arange(x_CV.shape[0])[:, None]
    return x_CV.at[rows_C1, columns_CK].set(values, mode="drop")


def _take(z_CV: jax.Array, columns_CK: jax.Array) -> jax.Array:
    """Returns z at columns [C, k], 0 where a column is not here."""
    return jnp.take_along_axis(z_CV, columns_CK, axis=-1, mode="fill", fill_value=0)


def _teacher_logits(teacher: OnlineTeacher) -> jax.Array:
    head = teacher.head.astype(teacher.hidden.dtype)
    return jnp.einsum("cd,vd->cv", teacher.hidden, head, preferred_element_type=jnp.float32)


def _sum_over_devices(local_sums: dict[_Key, jax.Array], vocab: Vocab) -> dict[_Key, jax.Array]:
    """Adds up over the devices that share the vocabulary: all sums cross in one array."""
    widths = [columns.shape[-1] for columns in local_sums.values()]
    ends = list(itertools.accumulate(widths))

    sums_CR = vocab.sum(jnp.concatenate(list(local_sums.values()), axis=-1))
    parts = jnp.split(sums_CR, ends[:-1], axis=-1)
    return dict(zip(local_sums, parts, strict=True))
