"""The parts of a loss: its named terms, how its operands lie on a mesh, and the Teachers it may
learn from.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from matta_jax.errors import UserError
from matta_jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the loss.

    Attributes:
      name: its name in the metrics.
      stream: index of the sub-model that it trains.
      weight: its weight, after the ramp where it has one.
      target: what the stream learns from: `labels` (cross-entropy), the `ta` (a divergence, on the
        ramp), or the `teacher` (forward KL).
      temperature: T > 0 of the last two, whose values are scaled by T² to keep the gradient's size
        (Hinton 2015).
    """

    name: str
    stream: int
    weight: float
    target: str = "labels"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(
                f"temperature={self.temperature} of the term {self.name!r} must be greater than 0"
            )


@dataclasses.dataclass(frozen=True)
class LossPlan:
    """All of a loss that is known before it runs.

    Attributes:
      terms: the terms.
      student, ta: streams compared for agreement; the TA is also the source of `ta` terms.
      divergence: of `ta` terms, from the TA's distribution q to the stream's p: `forward_kl`
        KL(q‖p), `reverse_kl` KL(p‖q), or `jensen_shannon` β·KL(q‖m) + (1-β)·KL(p‖m), m = β·q +
        (1-β)·p (Agarwal et al. 2024, eq. 1).
      beta: this β.
      chunk_size: most tokens of a chunk on a device.
      layout: of the operands; None on one device.
    """

    terms: tuple[Term, ...]
    student: int
    ta: int
    divergence: str = "forward_kl"
    beta: float = 0.5
    chunk_size: int = 256
    layout: Layout | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """Labels of examples that are of several classes: their cross-entropy is the mean by shares.

    Attributes:
      ids: [N, K].
      shares: of each [N, K]; those of an example add up to 1.
    """

    ids: jax.Array
    shares: jax.Array

    @classmethod
    def of_two(cls, first_N: jax.Array, second_N: jax.Array, share_N: jax.Array) -> "SoftLabels":
        """Of the first in these shares, of the second in what they leave."""
        return cls(
            jnp.stack([first_N, second_N], axis=1), jnp.stack([share_N, 1 - share_N], axis=1)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnlineTeacher:
    """A frozen Teacher's forward pass.

    Attributes:
      hidden: its hidden states [N, D_teacher].
      head: its output table [V, D_teacher].
    """

    hidden: jax.Array
    head: jax.Array

    def top_ids(self, chunk_size: int) -> jax.Array:
        """Its most likely id [N] of each token; logits exist for `chunk_size` tokens at once."""
        table_VD = self.head.astype(self.hidden.dtype)
        of_token = lambda hidden_D: jnp.argmax(table_VD @ hidden_D).astype(jnp.int32)
        return jax.lax.map(of_token, self.hidden, batch_size=chunk_size)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "log_probs", "tail"],
    meta_fields=["temperature"],
)
@dataclasses.dataclass(frozen=True)
class TopKTeacher:
    """Cached labels of a Teacher: its k most likely ids, and one ghost bucket for all others.

    Attributes:
      ids: [N, k], distinct within a token, below the vocabulary's size.
      log_probs: their log-probabilities [N, k] at `temperature`.
      tail: log-mass [N] of the ids that are not among them; -inf when there is none.
      temperature: T at which they were captured; terms must have the same.
    """

    ids: jax.Array
    log_probs: jax.Array
    tail: jax.Array
    temperature: float = 1.0

    def top_ids(self, chunk_size: int) -> jax.Array:
        """Its most likely id [N] of each token."""
        return jnp.take_along_axis(self.ids, jnp.argmax(self.log_probs, axis=1)[:, None], axis=1)[
            :, 0
        ]


Teacher = OnlineTeacher | TopKTeacher


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constants:
    """Operands that get no gradient: labels, token and term weights, the divisor of the weighted
    sums, the Teacher.
    """

    labels: jax.Array | SoftLabels
    weights: jax.Array
    term_weights: jax.Array
    total: jax.Array
    teacher: Teacher | None
