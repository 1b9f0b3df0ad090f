"""Losses of pairs of texts, on the similarities of a batch [B, B]: both directions, and CoSENT.

The distillation of members is that of rows in all of them: the TA's softmax over the second texts
of the batch, which a member's learns from.

Shape letters: B pairs of a batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from matta_jax.distill._objective import Objective
from matta_jax.distill._plan import SoftLabels, Teacher

# The logarithm of what is no pair of pairs; finite, so that its gradient is 0 and not NaN.
_NONE = -1e30


class BothDirections(Objective):
    """Each text of a pair among those of its side: the mean of both cross-entropies."""

    def rows(
        self,
        outputs: Sequence[jax.Array],
        labels_N: jax.Array | SoftLabels,
        weights_N: jax.Array,
    ) -> tuple[Sequence[jax.Array], jax.Array | SoftLabels, jax.Array]:
        assert not isinstance(labels_N, SoftLabels), "the class of a text is its own second one"
        # Side by side, so that a pair's two rows stay on one device.
        rows_and_columns = [
            jnp.stack([logits_BB, logits_BB.T], axis=1).reshape(-1, len(logits_BB))
            for logits_BB in outputs
        ]
        return rows_and_columns, jnp.repeat(labels_N, 2), jnp.repeat(weights_N / 2, 2)


class Cosent(Objective):
    """CoSENT (Su 2022): log(1 + the sum of exp(s_j - s_i) over pairs i of a higher score than j).

    s is what a pair's own similarity is as a logit. A batch counts as much as it has pairs.
    """

    def __call__(  # noqa: PLR0913  Keyword-only: as of `Objective`.
        self,
        outputs: Sequence[jax.Array],
        table_VD: jax.Array | None,
        labels_N: jax.Array | SoftLabels,
        weights_N: jax.Array,
        *,
        ramp: jax.Array,
        total: jax.Array,
        teacher: Teacher | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `Objective`, of similarities [B, B]; `labels_N` are the scores of the pairs."""
        assert not isinstance(labels_N, SoftLabels), "scores are numbers"
        ranking = [term for term in self.plan.terms if term.target == "labels"]
        distillation = [term for term in self.plan.terms if term.target != "labels"]
        share = jnp.sum(weights_N) / total

        loss = jnp.zeros(())
        metrics: dict[str, jax.Array] = {}
        if distillation:
            plan = dataclasses.replace(self.plan, terms=tuple(distillation))
            own_second_N = jnp.arange(len(weights_N))
            loss, metrics = Objective(plan)(
                outputs, table_VD, own_second_N, weights_N, ramp=ramp, total=total, teacher=teacher
            )
        for term in ranking:
            value = share * cosent(jnp.diagonal(outputs[term.stream]), labels_N, weights_N)
            metrics[term.name] = value
            loss += term.weight * value
        agreement = _agreement(outputs[self.plan.student], outputs[self.plan.ta], weights_N)
        return loss, metrics | {"loss": loss, "agreement": agreement / total}


def cosent(similarity_B: jax.Array, score_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """The loss of a batch.

    Args:
      similarity_B: of each pair, as a logit.
      score_B: what people gave it.
      weight_B: 0 leaves a pair out.
    """
    is_pair_B = weight_B > 0
    is_higher_BB = score_B[:, None] > score_B[None, :]
    counts_BB = is_higher_BB & is_pair_B[:, None] & is_pair_B[None, :]
    excess_BB = similarity_B[None, :] - similarity_B[:, None]
    exponents = jnp.where(counts_BB, excess_BB, _NONE).ravel()
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), exponents]))


def _agreement(student_BB: jax.Array, ta_BB: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Of how many first texts both models take one second text for the nearest."""
    is_same_B = jnp.argmax(student_BB, axis=1) == jnp.argmax(ta_BB, axis=1)
    return jnp.sum(is_same_B * weight_B)


PAIR_LOSSES: Mapping[str, type[Objective]] = {
    "in_batch": Objective,
    "in_batch_both": BothDirections,
    "cosent": Cosent,
    # Of tokens that are hidden; where vectors are compared, of their pairs.
    "smae": Objective,
}
"""The objectives by `objective.pair_loss`."""
