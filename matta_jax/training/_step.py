"""One optimiser step of Student, TA and random mixes together; and the same losses without one.

Shape letters: B batch, T sequence, N tokens (= B·T), M mixes, L layers, A accumulated microbatches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from matta_jax.data import Labels
from matta_jax.distill import OnlineTeacher, Teacher, TopKTeacher, as_softmax, make_objective, ramp
from matta_jax.models import apply, joint_apply, targets_of
from matta_jax.nesting import SubModel, Tree
from matta_jax.optim import diagnostics, make_schedule
from matta_jax.sharding import batch_sharding, loss_layout, placement, replicated
from matta_jax.training._state import Setup, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def static_sub_models(setup: Setup) -> list[SubModel]:
    """The sub-models that every step runs: Student and TA, or one of them when they are equal."""
    nest = setup.nest
    return [nest.student] if nest.student == nest.ta else [nest.student, nest.ta]


def num_mixes(setup: Setup) -> int:
    """Random mixes of a step; none where the nest has one width."""
    return setup.config.nest.mix_per_step if len(setup.nest.widths) > 1 else 0


def make_train_step(setup: Setup) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the compiled step `(state, batch) -> (state, metrics)`; it takes the old state's
    memory.

    Where a Teacher runs along, its weights are a third argument.

    Random numbers depend on the seed and the step alone: a resumed run repeats them. A step whose
    loss or gradient is not finite leaves weights and optimiser as they were (`skipped` is True),
    and goes on to the next data. Metrics are float32 scalars: the loss, each term, `gap` (CE_S -
    CE_TA), `agreement`, `distill_scale` (w(t)/w_max), `grad_norm`, `learning_rate`, and what the
    optimiser has to say of itself (`optim.diagnostics`).
    """
    config = setup.config
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    loss_and_gradient = jax.value_and_grad(
        _make_loss(setup, num_mixes(setup), training=True), has_aux=True
    )

    def step(state: TrainState, batch: Batch, *teacher: Tree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        mix_key, dropout_key = jax.random.split(key)
        choice_ML = jax.random.randint(
            mix_key,
            (num_mixes(setup), setup.nest.ta.num_layers),
            0,
            len(setup.nest.widths),
            jnp.int32,
        )
        scale = ramp(
            state.step,
            num_steps=config.train.num_steps,
            fraction=config.objective.distill_ramp,
            shape=config.objective.ramp_shape,
        )
        total = jnp.maximum(jnp.sum(targets_of(batch).weights_N), 1.0)

        def part(key: jax.Array, rows: Batch) -> tuple[Metrics, Tree]:
            (_, metrics), gradient = loss_and_gradient(
                state.params, rows, choice_ML, key, scale, total, *teacher
            )
            return metrics, gradient

        metrics, gradient = _accumulate(part, batch, dropout_key, config.train.microbatches)
        updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics["skipped"] = ~good
        if "ta" in metrics:
            metrics["gap"] = metrics["student"] - metrics["ta"]
        metrics["distill_scale"] = scale
        metrics |= diagnostics(opt_state)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step))
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(
        step,
        in_shardings=(setup.shardings, batch_sharding(setup.mesh), *_teacher_shardings(setup)),
        out_shardings=(setup.shardings, replicated(setup.mesh)),
        donate_argnums=0,
    )


def make_eval_step(setup: Setup) -> Callable[[Tree, Batch], Metrics]:
    """Returns the compiled `(params, batch) -> sums`: Student's and TA's terms summed over targets,
    and `targets`.
    """
    loss = _make_loss(setup, 0, training=False)

    def step(params: Tree, batch: Batch) -> Metrics:
        sums = loss(params, batch, None, None, jnp.ones(()), jnp.ones(()))[1]
        return sums | {"targets": jnp.sum(targets_of(batch).weights_N)}

    return jax.jit(
        step,
        in_shardings=(setup.shardings.params, batch_sharding(setup.mesh)),
        out_shardings=replicated(setup.mesh),
    )


def _teacher_shardings(setup: Setup) -> list[Any]:
    if setup.teacher is None:
        return []
    return [jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_teacher)]


def abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a training batch. Raises UserError when the labels that it holds are
    missing.
    """
    config, rows = setup.config, batch_sharding(setup.mesh)
    size, length = config.data.batch_size, config.data.seq_len
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "tokens": ((size, length + 1), jnp.int32),
        "length": ((size,), jnp.int32),
    }
    if config.model.name == "scorer":
        shapes = {"tokens": ((size, length), jnp.int32), "length": ((size,), jnp.int32)}
        shapes |= {"label": ((size,), jnp.int32), "weight": ((size,), jnp.float32)}
        if config.model.num_dense:
            shapes["dense"] = ((size, config.model.num_dense), jnp.float32)
        if config.model.categories:
            shapes["categorical"] = ((size, len(config.model.categories)), jnp.int32)
    if config.teacher.labels is not None:
        top_k = Labels(config.teacher.labels).header.top_k
        shapes["teacher_ids"] = ((size, length, top_k), jnp.int32)
        shapes["teacher_log_probs"] = ((size, length, top_k), jnp.float32)
        shapes["teacher_tail"] = ((size, length), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in shapes.items()
    }


def _make_loss(setup: Setup, mixes: int, *, training: bool) -> Callable[..., Any]:
    config = setup.config
    sub_models = static_sub_models(setup)
    taught = training and config.teacher.is_used
    objective = make_objective(
        config.objective,
        num_mixes=mixes,
        nested=len(sub_models) > 1,
        layout=loss_layout(setup.mesh),
        teacher=config.teacher if taught else None,
    )

    def teach(batch: Batch, weights: tuple[Tree, ...]) -> Teacher | None:
        """What the Teacher says of a batch: the states of one that runs along, or its labels."""
        if not taught:
            return None
        if setup.teacher is None:
            flat = {
                name: batch[name].reshape(-1, *batch[name].shape[2:])
                for name in batch
                if "teacher" in name
            }
            ids, log_probs, tail = (
                flat[f"teacher_{name}"] for name in ("ids", "log_probs", "tail")
            )
            return TopKTeacher(ids, log_probs, tail, temperature=config.teacher.temperature)
        targets = targets_of(batch)
        output = apply(
            setup.teacher.architecture,
            weights[0],
            targets.tokens_BT,
            extras=targets.extras,
            dtype=config.model.compute_dtype,
            placement=placement(setup.mesh),
        )
        if targets.extras is None:
            return OnlineTeacher(output, weights[0]["embed"]["tokens"])
        logits = as_softmax(output)
        return OnlineTeacher(logits, jnp.eye(logits.shape[1]))

    def loss(
        params: Tree,
        batch: Batch,
        choice_ML: jax.Array | None,
        key: jax.Array | None,
        scale: jax.Array,
        total: jax.Array,
        *teacher_weights: Tree,
    ) -> tuple[jax.Array, Metrics]:
        targets = targets_of(batch)
        teacher = teach(batch, teacher_weights)
        labels_N = targets.labels_N
        if teacher is not None and config.teacher.task_labels == "teacher":
            labels_N = teacher.top_ids(config.objective.chunk_size)
        outputs = joint_apply(
            params,
            targets.tokens_BT,
            sub_models,
            nest=setup.nest,
            axes=setup.axes,
            mix_choice_ML=choice_ML,
            extras=targets.extras,
            dtype=config.model.compute_dtype,
            reduce_dtype=config.model.reduce_dtype,
            remat=config.model.remat if training else "none",
            dropout=config.model.dropout,
            key=key if training and config.model.dropout else None,
            placement=placement(setup.mesh),
        )
        return objective(
            outputs,
            params["embed"]["tokens"] if targets.extras is None else None,
            labels_N,
            targets.weights_N,
            ramp=scale,
            total=total,
            teacher=teacher,
        )

    return loss


def _accumulate(
    part: Callable[[jax.Array, Batch], tuple[Metrics, Tree]],
    batch: Batch,
    key: jax.Array,
    microbatches: int,
) -> tuple[Metrics, Tree]:
    """Adds up `part` over microbatches. Each takes every A-th row, so that all devices have rows in
    each.
    """
    if microbatches == 1:
        return part(key, batch)
    parts_A = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1), batch
    )
    keys_A = jax.random.split(key, microbatches)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(part, keys_A[0], jax.tree.map(lambda x: x[0], parts_A)),
    )

    def add(total: Any, inputs: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(*inputs)), None

    return jax.lax.scan(add, zeros, (keys_A, parts_A))[0]
