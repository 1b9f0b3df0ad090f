"""The composite objective: named terms with scheduled weights (MatTA, section 3).

    L(t) = a_S·L_S + a_TA·L_TA + w(t)·T²·D(stop_gradient(p_TA) ‖ p_S)
         + for each named member and random mix: a_M·L_M + w_M(t)·T²·D(stop_gradient(p_TA) ‖ p_M)
         [ + for each term with a Teacher q: u·T²·KL(q ‖ p) ]

Shape letters: N tokens, D d_model, V vocab.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from matta_jax.config import ObjectiveConfig, TeacherConfig
from matta_jax.distill._plan import LossPlan, SoftLabels, Teacher, Term
from matta_jax.distill.fused import nested_loss
from matta_jax.nesting import STUDENT, TA
from matta_jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a step, over its streams in their order.

    Attributes:
      plan: its terms; none of weight 0, but the cross-entropies of Student, TA and named members
        are there to be told, where these run.
    """

    plan: LossPlan

    @property
    def trained_streams(self) -> set[int]:
        """The streams that have a term with a weight, or that such a term learns from."""
        weighted = [term for term in self.plan.terms if term.weight]
        streams = {term.stream for term in weighted}
        return streams | {self.plan.ta for term in weighted if term.target == TA}

    def __call__(  # noqa: PLR0913  Keyword-only: where the loss is made.
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
        """Computes the loss of a batch, or a microbatch's share of it.

        Args:
          outputs: hidden states [N, d_k] of each stream; without a table, logits [N, classes] or
            (sigmoid) [N].
          table_VD: the table of the output, of which each stream uses its first d_k columns; None:
            outputs are logits.
          labels_N: target ids, or several of each token with their shares.
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
        outputs, labels_N, weights_N = self.rows(outputs, labels_N, weights_N)
        terms = self.plan.terms
        unit = jnp.ones(())
        term_weights = [term.weight * (ramp if term.target == TA else unit) for term in terms]
        losses = nested_loss(
            self.plan,
            outputs,
            table_VD,
            labels_N,
            weights_N,
            term_weights_M=jnp.stack(term_weights),
            total=total,
            teacher=teacher,
        )
        sums = zip(terms, losses.sums, strict=True)
        metrics = {term.name: value / total for term, value in sums}
        metrics["agreement"] = losses.agreement / total
        metrics["loss"] = losses.loss
        return losses.loss, metrics

    def rows(
        self,
        outputs: Sequence[jax.Array],
        labels_N: jax.Array | SoftLabels,
        weights_N: jax.Array,
    ) -> tuple[Sequence[jax.Array], jax.Array | SoftLabels, jax.Array]:
        """What terms are computed of: outputs, labels and weights as they come, or others that
        follow from them.
        """
        return outputs, labels_N, weights_N


def member_stream(name: str) -> str:
    """The stream of a member that a run names, as its metrics call it."""
    return f"members/{name}"


def mix_stream(index: int) -> str:
    """The stream of a random mix, as its metrics call it."""
    return f"mix_{index}"


def make_objective(
    config: ObjectiveConfig,
    streams: Sequence[str] = (STUDENT,),
    *,
    layout: Layout | None = None,
    teacher: TeacherConfig | None = None,
    kind: type[Objective] = Objective,
) -> Objective:
    """Builds the objective of a run.

    Args:
      config: the weights.
      streams: what a step runs, in order: `student`, then `ta` where it is another model, then
        `member_stream` of each named member and `mix_stream` of each random mix.
      layout: of the operands on a mesh; None on one device.
      teacher: weights of the terms that learn from a frozen Teacher; None: there is none.
      kind: how terms are computed of outputs.
    """
    terms = _cross_entropies(config, streams)
    terms += _distillation(config, streams)
    terms += [] if teacher is None else _teaching(teacher, streams)
    return kind(
        LossPlan(
            terms=tuple(terms),
            student=0,
            ta=streams.index(TA) if TA in streams else 0,
            divergence=config.divergence,
            beta=config.jensen_shannon_beta,
            chunk_size=config.chunk_size,
            layout=layout,
        )
    )


def _cross_entropies(config: ObjectiveConfig, streams: Sequence[str]) -> list[Term]:
    """Those of Student and TA."""
    weights = {STUDENT: config.student_weight, TA: config.ta_weight}
    return [
        Term(name, stream, weights[name]) for stream, name in enumerate(streams) if name in weights
    ]


def _distillation(config: ObjectiveConfig, streams: Sequence[str]) -> list[Term]:
    """What learns from the TA: the Student; and members and mixes, beside their cross-entropies."""

    def distil(name: str, stream: int, weight: float) -> Term:
        return Term(name, stream, weight, target=TA, temperature=config.temperature)

    terms = []
    for stream, name in enumerate(streams):
        kind, _, member = name.partition("/")
        if name == STUDENT:
            if TA in streams and config.distill_weight:
                terms.append(distil("distill", stream, config.distill_weight))
        elif kind == "members":
            weight, distill_weight = config.weights_of(member)
            terms.append(Term(name, stream, weight))
            if distill_weight:
                terms.append(distil(f"{name}_distill", stream, distill_weight))
        elif name != TA:
            if config.mix_weight:
                terms.append(Term(name, stream, config.mix_weight))
            if config.mix_distill_weight:
                terms.append(distil(f"{name}_distill", stream, config.mix_distill_weight))
    return terms


def _teaching(config: TeacherConfig, streams: Sequence[str]) -> list[Term]:
    """What learns from a frozen Teacher."""
    weights = {STUDENT: config.student_weight, TA: config.ta_weight}
    return [
        Term(
            f"teacher_{name}",
            stream,
            weights[name],
            target="teacher",
            temperature=config.temperature,
        )
        for stream, name in enumerate(streams)
        if weights.get(name)
    ]
