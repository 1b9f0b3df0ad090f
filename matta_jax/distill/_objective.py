"""The composite objective: named terms with scheduled weights (method.md).

    L(t) = a_S·L_S + a_TA·L_TA + w(t)·T²·D(stop_gradient(p_TA) ‖ p_S)
         + for each random mix: a_M·L_M + w_M(t)·T²·D(stop_gradient(p_TA) ‖ p_M)

Shape letters: N tokens, D d_model, V vocab.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from matta_jax.config import ObjectiveConfig
from matta_jax.distill._losses import cross_entropy, divergence
from matta_jax.models import logits


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the loss.

    Attributes:
      name: its name in the metrics.
      stream: index of the sub-model that it trains.
      weight: its weight, after the ramp where it has one.
      distils: from the TA, on the ramp; otherwise cross-entropy on the labels.
    """

    name: str
    stream: int
    weight: float
    distils: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
    """The terms of a step, over streams ordered Student, TA, mixes.

    Attributes:
      terms: the terms; none of weight 0, but the cross-entropies of Student and TA are always there to be logged.
      student, ta: index of these streams; equal when nothing is nested.
      temperature, divergence, beta: of the distillation terms.
    """

    terms: tuple[Term, ...]
    student: int
    ta: int
    temperature: float
    divergence: str
    beta: float

    def __call__(
        self,
        hidden: Sequence[jax.Array],
        table_VD: jax.Array,
        labels_N: jax.Array,
        weights_N: jax.Array,
        *,
        ramp: jax.Array,
        total: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the loss of a batch, or a microbatch's share of it.

        Args:
          hidden: hidden states [N, d_k] of each stream.
          table_VD: the tied embedding, of which each stream uses its first d_k columns.
          labels_N: target ids.
          weights_N: weight of each token; 0 leaves it out.
          ramp: w(t)/w_max in [0, 1].
          total: sum of the weights over the *whole* batch, all hosts and microbatches, so that shares add up.

        Returns:
          The loss, and each term (unweighted), `agreement` (top-1, of Student and TA) and `loss`, by name.
        """
        # Streams that are the same array (a trivial nest) are computed once by the compiler.
        logits_of = [logits(h_ND, table_VD) for h_ND in hidden]

        def mean(values_N: jax.Array) -> jax.Array:
            return jnp.sum(values_N * weights_N) / total

        metrics: dict[str, jax.Array] = {}
        loss = jnp.zeros(())
        for term in self.terms:
            z_NV = logits_of[term.stream]
            if term.distils:
                per_token = divergence(
                    logits_of[self.ta], z_NV, kind=self.divergence, temperature=self.temperature, beta=self.beta
                )
            else:
                per_token = cross_entropy(z_NV, labels_N)
            metrics[term.name] = mean(per_token)
            loss = loss + term.weight * (ramp if term.distils else 1.0) * metrics[term.name]
        top_S, top_TA = (jnp.argmax(logits_of[i], axis=-1) for i in (self.student, self.ta))
        metrics["agreement"] = mean(top_S == top_TA)
        metrics["loss"] = loss
        return loss, metrics


def make_objective(config: ObjectiveConfig, *, num_mixes: int, nested: bool = True) -> Objective:
    """Builds the objective of a run.

    Args:
      config: the weights.
      num_mixes: random mixes of a step.
      nested: False when the TA is the Student: then there is one stream and one cross-entropy.
    """
    common = {
        "temperature": config.temperature,
        "divergence": config.divergence,
        "beta": config.jensen_shannon_beta,
    }
    if not nested:
        return Objective((Term("student", 0, config.student_weight),), 0, 0, **common)  # type: ignore[arg-type]
    terms = [Term("student", 0, config.student_weight), Term("ta", 1, config.ta_weight)]
    optional = [Term("distill", 0, config.distill_weight, distils=True)]
    for i in range(num_mixes):
        optional.append(Term(f"mix_{i}", 2 + i, config.mix_weight))
        optional.append(Term(f"mix_{i}_distill", 2 + i, config.mix_distill_weight, distils=True))
    terms += [term for term in optional if term.weight]
    return Objective(tuple(terms), 0, 1, **common)  # type: ignore[arg-type]
