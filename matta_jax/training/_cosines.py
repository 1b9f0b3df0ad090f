"""Whether members pull the weights that they share with the TA in one direction with it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from matta_jax.config import ObjectiveConfig, TeacherConfig
from matta_jax.nesting import STUDENT, TA, SubModel, Tree
from matta_jax.sharding import batch_sharding, replicated
from matta_jax.training._loss import Batch, Draws, Metrics, step_loss
from matta_jax.training._state import Setup
from matta_jax.training._step import static_members


def make_cosines(setup: Setup) -> Callable[[Tree, Batch], Metrics]:
    """Returns the compiled `(params, batch) -> cosines`: of the gradient of each member's
    cross-entropy with that of the TA's, over the weights of the member: 1 where both want the same,
    below 0 where a step for one is a step back for the other.

    Names are those of the members' metrics, after `cosine/`; there are none in a plain run.
    """
    members = static_members(setup)
    ta = members.pop(TA, None)

    def cosines(params: Tree, batch: Batch) -> Metrics:
        if ta is None:
            return {}
        of_ta = _gradient(setup, ta, params, batch)
        values = {}
        for name, member in members.items():
            gradient = _gradient(setup, member, params, batch)
            shared = [setup.plan.slice(tree, member) for tree in (gradient, of_ta)]
            values[f"cosine/{name}"] = _cosine(*shared)
        return values

    return jax.jit(
        cosines,
        in_shardings=(setup.shardings.params, batch_sharding(setup.mesh)),
        out_shardings=replicated(setup.mesh),
    )


def _gradient(setup: Setup, member: SubModel, params: Tree, batch: Batch) -> Tree:
    """The gradient of a member's cross-entropy, whatever weight the run gives it."""
    objective = ObjectiveConfig(student_weight=1.0, chunk_size=setup.config.objective.chunk_size)
    config = dataclasses.replace(setup.config, objective=objective, teacher=TeacherConfig())
    loss = step_loss(dataclasses.replace(setup, config=config, teacher=None), {STUDENT: member})
    unit = jnp.ones(())
    draws = Draws(None, None, scale=unit, total=unit)
    return jax.grad(lambda weights: loss(weights, batch, draws)[0])(params)


def _cosine(a: Tree, b: Tree) -> jax.Array:
    def product(x: Tree, y: Tree) -> jax.Array:
        # In float32, whatever the weights are: squares of a small gradient vanish in less.
        def part(p: jax.Array, q: jax.Array) -> jax.Array:
            return jnp.vdot(p.astype(jnp.float32), q.astype(jnp.float32))

        parts = jax.tree.map(part, x, y)
        return jnp.sum(jnp.stack(jax.tree.leaves(parts)))

    norms = jnp.sqrt(product(a, a)) * jnp.sqrt(product(b, b))
    return product(a, b) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
