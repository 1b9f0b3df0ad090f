"""The loss of a step of members and random mixes: all of them run in one pass.

Shape letters: B batch, T sequence, N tokens (= B·T), M mixes, L layers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.distill import (
    PAIR_LOSSES,
    Objective,
    OnlineTeacher,
    SoftLabels,
    Teacher,
    TopKTeacher,
    as_softmax,
    hide_tokens,
    make_objective,
    mix_stream,
)
from matta_jax.models import Compute, Targets, apply, flat_positions, joint_apply, table_of
from matta_jax.nesting import SubModel, Tree
from matta_jax.sharding import Layout, Rows, loss_layout
from matta_jax.training._state import Setup

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """What a loss depends on beside weights and batch.

    Attributes:
      choice_ML: the choices of random mixes; None: there are none.
      key: of dropout; None: nothing is dropped.
      scale: w(t)/w_max.
      total: what sums over targets are divided by.
    """

    choice_ML: jax.Array | None
    key: jax.Array | None
    scale: jax.Array
    total: jax.Array


class Loss:
    """The loss of a step, and each of its terms by name."""

    def __init__(
        self,
        setup: Setup,
        members: dict[str, SubModel],
        *,
        mixes: int,
        is_training: bool,
        rows: Rows | None = None,
    ):
        """A loss of a batch; or within `Rows.run`, a device's share of it."""
        self._setup, self._is_training = setup, is_training
        self._placement = setup.placement if rows is None else rows.placement
        self._stretches = self._placement.stretches
        layout = loss_layout(setup.mesh) if rows is None else rows.layout
        self._members = members
        self._is_taught = is_training and setup.config.teacher.is_used
        self._objective = objective_of(
            setup, self._members, mixes, is_taught=self._is_taught, layout=layout
        )

    def targets(self, batch: Batch) -> Targets:
        """What is scored of a batch, or of a device's share of it."""
        return self._setup.plan.schema.targets(batch, self._stretches)

    def __call__(
        self, params: Tree, batch: Batch, draws: Draws, *teacher_weights: Tree
    ) -> tuple[jax.Array, Metrics]:
        setup, config = self._setup, self._setup.config
        targets = self.targets(batch)
        if config.objective.pair_loss == "smae":
            targets = hide_tokens(targets, config.objective, draws.key)
        labels_N: jax.Array | SoftLabels = targets.labels_N
        teacher = None
        if targets.second_labels_N is not None:
            assert targets.shares_N is not None
            labels_N = SoftLabels.of_two(
                targets.labels_N, targets.second_labels_N, targets.shares_N
            )
        if config.objective.pair_loss == "cosent":
            assert targets.scores_N is not None
            labels_N = targets.scores_N
        if self._is_taught:
            teacher = _teacher_of(setup, batch, targets, teacher_weights)
            if config.teacher.task_labels == "teacher":
                labels_N = teacher.top_ids(config.objective.chunk_size)

        mixes = [] if draws.choice_ML is None else list(draws.choice_ML)
        has_dropout = self._is_training and config.model.dropout
        outputs = joint_apply(
            setup.plan,
            params,
            targets.inputs,
            [*self._members.values(), *mixes],
            compute=self._compute(),
            key=draws.key if has_dropout else None,
        )
        family, options = setup.plan.family, setup.plan.architecture.options
        outputs = [family.logits_of(output, targets.inputs, options) for output in outputs]
        return self._objective(
            outputs,
            setup.plan.training_table(params),
            labels_N,
            targets.weights_N,
            ramp=draws.scale,
            total=draws.total,
            teacher=teacher,
        )

    def _compute(self) -> Compute:
        model = self._setup.config.model
        return Compute(
            dtype=model.compute_dtype,
            reduce_dtype=model.reduce_dtype,
            remat=model.remat_policy if self._is_training else "none",
            remat_names=model.remat_names,
            dropout=model.dropout,
            placement=self._placement,
        )


def step_loss(setup: Setup, members: dict[str, SubModel]) -> Callable[..., Any]:
    """The loss of a training step of these members alone, `(params, batch, draws) -> (loss,
    metrics)`.
    """
    return Loss(setup, members, mixes=0, is_training=True)


def objective_of(
    setup: Setup,
    members: dict[str, SubModel],
    mixes: int,
    *,
    is_taught: bool,
    layout: Layout | None = None,
) -> Objective:
    """The objective of a step of these members and so many random mixes."""
    streams: Sequence[str] = [*members, *(mix_stream(i) for i in range(mixes))]
    return make_objective(
        setup.config.objective,
        streams,
        layout=layout,
        teacher=setup.config.teacher if is_taught else None,
        kind=PAIR_LOSSES[setup.config.objective.pair_loss],
    )


def _teacher_of(setup: Setup, batch: Batch, targets: Targets, weights: tuple[Tree, ...]) -> Teacher:
    """What the Teacher says of a batch: the states of one that runs along, or its labels."""
    config = setup.config
    if setup.teacher is None:
        flat = {
            name: flat_positions(array, targets.inputs)
            for name, array in batch.items()
            if name.startswith("teacher_")
        }
        return TopKTeacher(
            flat["teacher_ids"],
            flat["teacher_log_probs"],
            flat["teacher_tail"],
            temperature=config.teacher.temperature,
        )

    output = apply(
        setup.teacher.architecture,
        weights[0],
        targets.inputs,
        dtype=config.model.compute_dtype,
        placement=setup.placement,
    )
    table = table_of(setup.teacher.architecture, weights[0])
    if table is not None:
        return OnlineTeacher(output, table)
    architecture = setup.teacher.architecture
    logits = architecture.family.logits_of(output, targets.inputs, architecture.options)
    logits = as_softmax(logits)
    return OnlineTeacher(logits, jnp.eye(logits.shape[1]))
