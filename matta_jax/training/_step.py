"""One optimiser step of all members and random mixes together; and the same losses without one.

Shape letters: B batch, T sequence, N tokens (= B·T), M mixes, L layers, A accumulated microbatches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from matta_jax.data import Labels
from matta_jax.distill import member_stream, ramp
from matta_jax.nesting import STUDENT, TA, SubModel, Tree
from matta_jax.optim import diagnostics, make_schedule
from matta_jax.sharding import batch_sharding, replicated
from matta_jax.training._gradient import make_gradient, rows_of
from matta_jax.training._loss import Batch, Draws, Loss, Metrics, objective_of
from matta_jax.training._state import Setup, TrainState

TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""`(state, batch) -> (state, metrics)`, compiled; a Teacher's weights are a third argument."""


def static_members(setup: Setup) -> dict[str, SubModel]:
    """The sub-models that every evaluation runs, by stream: Student, TA unless it is the Student,
    and the members that the run names.
    """
    nest = setup.nest
    members = {STUDENT: nest.student}
    if nest.ta != nest.student:
        members[TA] = nest.ta
    return members | {member_stream(name): member for name, member in nest.others.items()}


def trained_members(setup: Setup) -> dict[str, SubModel]:
    """Those of `static_members` that a training step runs: they have a loss with a weight, or
    others learn from them.
    """
    members = static_members(setup)
    objective = objective_of(
        setup, members, num_mixes(setup), is_taught=setup.config.teacher.is_used
    )
    streams = objective.trained_streams
    return {name: member for i, (name, member) in enumerate(members.items()) if i in streams}


def num_mixes(setup: Setup) -> int:
    """Random mixes of a step; none where layers have nothing to choose from, or without weight."""
    objective = setup.config.objective
    is_trained = objective.mix_weight or objective.mix_distill_weight
    has_options = len(setup.nest.layer_options) > 1
    return setup.config.nest.mix_per_step if has_options and is_trained else 0


def joining_step(setup: Setup) -> int:
    """Steps in which the TA trains alone, before its members join it."""
    if setup.nest.ta == setup.nest.student:
        return 0
    return round(setup.config.objective.members_start * setup.config.train.num_steps)


def make_train_steps(setup: Setup) -> Callable[[int], TrainStep]:
    """Returns what gives the step to take after so many: a run may begin with its TA alone, and
    train mixes in some of its steps.
    """
    first = joining_step(setup)
    # Each is compiled when it is first called.
    joint_step = make_train_step(setup)
    ta_step = make_train_step(setup, ta_alone=True)
    mixless_step = make_train_step(setup, has_mixes=False)

    def step_at(step: int) -> TrainStep:
        if step < first:
            return ta_step
        return joint_step if trains_mixes(setup, step) else mixless_step

    return step_at


def trains_mixes(setup: Setup, step: int) -> bool:
    """Whether the step after so many trains random mixes; true where there are none at all."""
    return not num_mixes(setup) or (step + 1) % setup.config.nest.mix_every == 0


def make_train_step(setup: Setup, *, ta_alone: bool = False, has_mixes: bool = True) -> TrainStep:
    """Returns the compiled step `(state, batch) -> (state, metrics)`; it takes the old state's
    memory.

    Where a Teacher runs along, its weights are a third argument.

    Random numbers depend on the seed and the step alone: a resumed run repeats them. A step whose
    loss or gradient is not finite leaves weights and optimiser as they were (`skipped` is True),
    and goes on to the next data. A member without any weight is not run, and has no metrics here.
    Metrics are float32 scalars: the loss, each term, `gap` (CE_S - CE_TA), `agreement`,
    `distill_scale` (w(t)/w_max), `grad_norm`, `learning_rate`, and what the optimiser has to say of
    itself (`optim.diagnostics`).

    Args:
      setup: of the run.
      ta_alone: whether the step runs the TA and nothing else.
      has_mixes: whether it runs the random mixes of the config.
    """
    config, nest = setup.config, setup.nest
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    members = {TA: nest.ta} if ta_alone else trained_members(setup)
    mixes = num_mixes(setup) if has_mixes and not ta_alone else 0
    gradient_of = make_gradient(setup, members, mixes)

    def step(state: TrainState, batch: Batch, *teacher: Tree) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        mix_key, dropout_key = jax.random.split(key)
        scale = ramp(
            jnp.maximum(state.step - joining_step(setup), 0),
            num_steps=config.train.num_steps,
            fraction=config.objective.distill_ramp,
            shape=config.objective.ramp_shape,
        )
        weights_N = setup.plan.schema.targets(batch).weights_N
        total = jnp.maximum(jnp.sum(weights_N), 1.0)

        draws = Draws(_draw_mixes(setup, mixes, mix_key), dropout_key, scale, total)
        metrics, gradient = gradient_of(state.params, batch, draws, *teacher)
        new_state, grad_norm, is_good = _update(setup, state, gradient, metrics["loss"])
        metrics["grad_norm"] = grad_norm
        metrics["skipped"] = ~is_good
        if TA in metrics and STUDENT in metrics:
            metrics["gap"] = metrics[STUDENT] - metrics[TA]
        # Of two models of which one does not run there is none.
        if STUDENT not in members or (TA in static_members(setup) and TA not in members):
            del metrics["agreement"]
        metrics["distill_scale"] = scale
        metrics |= diagnostics(new_state.opt_state)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step))
        return new_state, metrics

    return jax.jit(
        step,
        in_shardings=(setup.shardings, batch_sharding(setup.mesh), *_teacher_shardings(setup)),
        out_shardings=(setup.shardings, replicated(setup.mesh)),
        donate_argnums=0,
    )


def _draw_mixes(setup: Setup, mixes: int, key: jax.Array) -> jax.Array:
    """Draws the choice [M, L] of each layer of each mix, an index into the nest's options."""
    num_layers, num_options = setup.nest.num_layers, len(setup.nest.layer_options)
    draws = num_layers if setup.config.nest.mix_by == "layer" else 1
    choice_MD = jax.random.randint(key, (mixes, draws), 0, num_options, jnp.int32)
    return jnp.broadcast_to(choice_MD, (mixes, num_layers))


def _update(
    setup: Setup, state: TrainState, gradient: Tree, loss: jax.Array
) -> tuple[TrainState, jax.Array, jax.Array]:
    """Returns the next state, the gradient's norm, and whether both it and the loss are finite:
    otherwise weights and optimiser stay as they were.
    """
    updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = optax.tree.norm(gradient)
    is_good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_good, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    return TrainState(state.step + 1, params, opt_state), grad_norm, is_good


def make_eval_step(setup: Setup) -> Callable[[Tree, Batch], Metrics]:
    """Returns the compiled `(params, batch) -> sums`: the terms of all members summed over targets,
    and `targets`. Devices that share windows compute with their own positions.
    """
    # Rows alone the partitioner splits by itself: no gradient is summed here.
    rows = rows_of(setup) if setup.mesh.shape["context"] > 1 else None
    loss = Loss(setup, static_members(setup), mixes=0, is_training=False, rows=rows)

    def sums_of(params: Tree, batch: Batch) -> Metrics:
        unit = jnp.ones(())
        sums = loss(params, batch, Draws(None, None, scale=unit, total=unit))[1]
        return sums | {"targets": jnp.sum(loss.targets(batch).weights_N)}

    def of_device(shards: Tree, batch: Batch) -> Metrics:
        assert rows is not None
        return rows.sum(sums_of(rows.together(shards, setup.axes), batch))

    return jax.jit(
        sums_of if rows is None else rows.run(of_device, setup.axes, has_gradient=False),
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
    shapes = dict(setup.plan.schema.batch_shapes(size, length))
    if config.data.score_field is not None:
        shapes["score"] = ((size,), "float32")
    if config.data.mixup or config.data.cutmix:
        shapes |= {"label_2": ((size,), "int32"), "label_share": ((size,), "float32")}
    if config.data.documents == "apart":
        shapes["documents"] = ((size, length), "int32")
    if config.teacher.labels is not None:
        top_k = Labels(config.teacher.labels).header.top_k
        shapes["teacher_ids"] = ((size, length, top_k), "int32")
        shapes["teacher_log_probs"] = ((size, length, top_k), "float32")
        shapes["teacher_tail"] = ((size, length), "float32")
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=rows)
        for name, (shape, dtype) in shapes.items()
    }
