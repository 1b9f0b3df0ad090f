"""The gradient of a step, over microbatches and devices.

Shape letters: A accumulated microbatches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.nesting import SubModel, Tree
from matta_jax.sharding import Rows, batch_axes, engine_of
from matta_jax.training._loss import Batch, Draws, Loss, Metrics
from matta_jax.training._state import Setup

StepGradient = Callable[..., tuple[Metrics, Tree]]
"""`(params, batch, draws, *teacher) -> (metrics, gradient)`, to be traced."""


def make_gradient(setup: Setup, members: dict[str, SubModel], mixes: int) -> StepGradient:
    """Returns what gives the metrics of a batch and the gradient of its loss, summed over
    microbatches and devices.

    Args:
      setup: of the run.
      members: the sub-models that run, by stream.
      mixes: how many random mixes run.
    """
    rows = rows_of(setup)
    loss = Loss(setup, members, mixes=mixes, is_training=True, rows=rows)
    loss_and_gradient = jax.value_and_grad(loss, has_aux=True)
    microbatches = setup.config.train.microbatches

    def of_part(params: Tree, batch: Batch, draws: Draws, *teacher: Tree) -> Any:
        (_, metrics), gradient = loss_and_gradient(params, batch, draws, *teacher)
        return metrics, gradient

    if rows is None:

        def gradient_of(params: Tree, batch: Batch, draws: Draws, *teacher: Tree) -> Any:
            def part(draws: Draws, batch: Batch) -> Any:
                return of_part(params, batch, draws, *teacher)

            return _accumulate(part, batch, draws, microbatches)

        return gradient_of
    return rows.run(_by_rows(setup, rows, of_part), setup.axes)


def rows_of(setup: Setup) -> Rows | None:
    """How devices share the rows of a batch, each by itself; None where they are not split, or what
    a step does of them needs all of them: similarities to the texts of the batch, the masks of
    dropout, a Teacher that runs along.
    """
    config = setup.config
    needs_all = setup.plan.family.compares_rows or config.model.dropout or setup.teacher is not None
    is_split = batch_axes(setup.mesh) or setup.mesh.shape["context"] > 1
    if needs_all or not is_split:
        return None
    return Rows(
        setup.mesh,
        engine_of(config.model.attention, setup.mesh),
        config.model.compute_dtype,
        config.model.reduce_dtype,
        once=config.train.gather == "step",
        late=config.train.gather != "step" and config.train.microbatches > 1,
    )


def _by_rows(setup: Setup, rows: Rows, of_part: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient on each device."""
    microbatches = setup.config.train.microbatches

    def gradient_of(shards: Tree, batch: Batch, draws: Draws) -> Any:
        params = rows.together(shards, setup.axes) if rows.once else shards

        def part(draws: Draws, batch: Batch) -> Any:
            if rows.once:
                metrics, gradient = of_part(params, batch, draws)
                if microbatches > 1:
                    gradient = jax.tree.map(lambda part: part.astype(jnp.float32), gradient)
                return metrics, gradient
            metrics, gradient = of_part(rows.together(params, setup.axes), batch, draws)
            return metrics, rows.apart(gradient, setup.axes)

        metrics, gradient = _accumulate(part, batch, draws, microbatches)
        if rows.once:
            gradient = rows.apart(gradient, setup.axes)
        return rows.sum(metrics), rows.finish(gradient, setup.axes)

    return gradient_of


def _accumulate(
    part: Callable[[Draws, Batch], tuple[Metrics, Tree]],
    batch: Batch,
    draws: Draws,
    microbatches: int,
) -> tuple[Metrics, Tree]:
    """Adds up `part` over microbatches. Each takes every A-th row, so that all devices have rows in
    each.
    """
    if microbatches == 1:
        return part(draws, batch)

    def in_parts(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)

    parts_A = jax.tree.map(in_parts, batch)
    assert draws.key is not None, "a step has a key"
    keys_A = jax.random.split(draws.key, microbatches)

    def of(key: jax.Array, rows: Batch) -> tuple[Metrics, Tree]:
        return part(dataclasses.replace(draws, key=key), rows)

    first_part = jax.tree.map(lambda x: x[0], parts_A)
    shapes = jax.eval_shape(of, keys_A[0], first_part)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, inputs: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of(*inputs)), None

    return jax.lax.scan(add, zeros, (keys_A, parts_A))[0]
