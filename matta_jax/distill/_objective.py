"""The composite objective: named terms with scheduled weights (method.md).

    L(t) = a_S·L_S + a_TA·L_TA + w(t)·T²·D(stop_gradient(p_TA) ‖ p_S)
         + for each random mix: a_M·L_M + w_M(t)·T²·D(stop_gradient(p_TA) ‖ p_M)
         [ + for each term with a Teacher q: u·T²·KL(q ‖ p) ]

Shape letters: N tokens, D d_model, V vocab.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from matta_jax.config import ObjectiveConfig, TeacherConfig
from matta_jax.distill._plan import Plan, Teacher, Term
from matta_jax.distill.fused import nested_loss
from matta_jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a step, over streams ordered Student, TA, mixes; one stream where TA and Student
    are the same.

    Attributes:
      plan: its terms; none of weight 0, but the cross-entropies of Student and TA are always there
        to be logged.
    """

    plan: Plan

    def __call__(
        self,
        outputs: Sequence[jax.Array],
        table_VD: jax.Array | None,
        labels_N: jax.Array,
        weights_N: jax.Array,
        *,
        ramp: jax.Array,
        total: jax.Array,
        teacher: Teacher | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the loss of a batch, or a microbatch's share of it.

        Args:
          outputs: hidden states [N, d_k] of each stream; without a table, logits [N, classes] or
            (sigmoid) [N].
          table_VD: the tied embedding, of which each stream uses its first d_k columns; None:
            outputs are logits.
          labels_N: target ids.
          weights_N: weight of each token; 0 leaves it out.
          ramp: w(t)/w_max in [0, 1], of the terms that distil from the TA.
          total: sum of the weights over the *whole* batch, all hosts and microbatches, so that
            shares add up.
          teacher: the source of `teacher` terms.

        Returns:
          The loss, and each term (unweighted), `agreement` (top-1, of Student and TA) and `loss`,
          by name.

        Raises:
          UserError: as `nested_loss`.
        """
        terms = self.plan.terms
        term_weights_M = jnp.stack(
            [term.weight * (ramp if term.target == "ta" else jnp.ones(())) for term in terms]
        )
        losses = nested_loss(
            self.plan,
            outputs,
            table_VD,
            labels_N,
            weights_N,
            term_weights_M=term_weights_M,
            total=total,
            teacher=teacher,
        )
        metrics = {term.name: value / total for term, value in zip(terms, losses.sums, strict=True)}
        metrics["agreement"] = losses.agreement / total
        metrics["loss"] = losses.loss
        return losses.loss, metrics


def make_objective(
    config: ObjectiveConfig,
    *,
    num_mixes: int = 0,
    nested: bool = True,
    layout: Layout | None = None,
    teacher: TeacherConfig | None = None,
) -> Objective:
    """Builds the objective of a run.

    Args:
      config: the weights.
      num_mixes: random mixes of a step.
      nested: False when the TA is the Student: then there is one stream and one cross-entropy.
      layout: of the operands on a mesh; None on one device.
      teacher: weights of the terms that learn from a frozen Teacher; None: there is none.
    """
    terms = [Term("student", 0, config.student_weight)]
    if nested:
        distil = functools.partial(Term, target="ta", temperature=config.temperature)
        optional = [distil("distill", 0, config.distill_weight)]
        for i in range(num_mixes):
            optional.append(Term(f"mix_{i}", 2 + i, config.mix_weight))
            optional.append(distil(f"mix_{i}_distill", 2 + i, config.mix_distill_weight))
        terms += [Term("ta", 1, config.ta_weight), *(term for term in optional if term.weight)]
    if teacher is not None:
        ends = {"student": (0, teacher.student_weight)}
        if nested:
            ends["ta"] = (1, teacher.ta_weight)
        terms += [
            Term(
                f"teacher_{name}", stream, weight, target="teacher", temperature=teacher.temperature
            )
            for name, (stream, weight) in ends.items()
            if weight
        ]
    plan = Plan(
        terms=tuple(terms),
        student=0,
        ta=1 if nested else 0,
        divergence=config.divergence,
        beta=config.jensen_shannon_beta,
        chunk_size=config.chunk_size,
        layout=layout,
    )
    return Objective(plan)
