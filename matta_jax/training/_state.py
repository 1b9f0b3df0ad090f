"""The state of a run, and how it lies on the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from matta_jax.config import Config
from matta_jax.models import Plan, init_params, plan_of
from matta_jax.nesting import Nest, Role, Tree, flatten, unflatten, units
from matta_jax.optim import optimizer_of, state_shardings, weights_of
from matta_jax.sharding import (
    Placement,
    engine_of,
    param_shardings,
    place,
    placement,
    replicated,
)
from matta_jax.starts.teacher import Teacher, open_teacher


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
      step: optimiser steps done, int32 [].
      params: the TA's weights, the Student's among them.
      opt_state: of the Optax chain.
    """

    step: jax.Array
    params: Tree
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that is known of a run before an array exists: the order is abstract shapes, shardings,
    then arrays.

    Attributes:
      config: the run.
      plan: of its models.
      optimizer: the Optax chain.
      mesh: the devices.
      abstract: a TrainState of `jax.ShapeDtypeStruct` with shardings.
      teacher: the frozen model that runs along, or None.
    """

    config: Config
    plan: Plan
    optimizer: optax.GradientTransformation
    mesh: Mesh
    abstract: TrainState
    teacher: Teacher | None = None

    @property
    def nest(self) -> Nest:
        """Student, TA and what lies between."""
        return self.plan.nest

    @property
    def axes(self) -> Tree:
        """Axis names of the TA's weights."""
        return self.plan.axes

    @property
    def placement(self) -> Placement:
        """Where weights lie, and what attends."""
        return placement(self.mesh, engine_of(self.config.model.attention, self.mesh))

    @property
    def abstract_teacher(self) -> Tree:
        """Shapes and shardings of the Teacher's weights, which are kept in the compute type; ()
        without one.
        """
        if self.teacher is None:
            return ()
        dtype, abstract = self.config.model.compute_dtype, self.teacher.abstract
        shardings = param_shardings(abstract, self.teacher.axes, self.mesh, uneven_whole=Role)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
            abstract,
            shardings,
        )

    def load_teacher(self) -> Tree:
        """Reads the Teacher's weights, each device its own part; () without one."""
        if self.teacher is None:
            return ()
        stored, placed = self.teacher.stored(), {}
        # One after another: a Teacher may be larger than the memory of a host.
        for path, abstract in flatten(self.abstract_teacher).items():
            weight = np.asarray(stored[path].whole()).astype(abstract.dtype)
            placed[path] = place(weight, abstract.sharding)
        return unflatten(placed)

    @property
    def units(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """How a checkpoint of the state is cut: weights as sub-models may cut them, and moments as
        their weights.
        """
        params = {path: units(names, self.nest) for path, names in flatten(self.axes).items()}
        moments = weights_of(self.abstract.opt_state, self.abstract.params)
        return {
            "params": params,
            "opt_state": {path: params[owner] for path, owner in moments.items()},
        }

    @property
    def shardings(self) -> TrainState:
        """A TrainState of shardings."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def init(self) -> TrainState:
        """Makes the state of step 0, each device its own part."""

        def fresh() -> TrainState:
            key = jax.random.key(self.config.train.seed)
            params = init_params(self.plan.architecture, key, self.nest)
            return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

        return jax.jit(fresh, out_shardings=self.shardings)()


def make_setup(config: Config, mesh: Mesh) -> Setup:
    """Derives everything but the arrays from a config. Raises UserError when the mesh does not fit
    the model, or its Teacher is missing.
    """
    # A kernel that is not there is told before anything is made.
    engine_of(config.model.attention, mesh)
    plan = plan_of(config)
    optimizer = optimizer_of(config, plan, mesh)
    shardings = param_shardings(plan.abstract, plan.axes, mesh)
    opt_state = jax.eval_shape(optimizer.init, plan.abstract)
    opt_shardings = state_shardings(opt_state, plan.abstract, shardings, mesh)

    def placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = TrainState(
        step=placed(jax.ShapeDtypeStruct((), jnp.int32), replicated(mesh)),
        params=jax.tree.map(placed, plan.abstract, shardings),
        opt_state=jax.tree.map(placed, opt_state, opt_shardings),
    )
    where = config.teacher.model
    teacher = None if where is None else open_teacher(where, "teacher.model")
    return Setup(config, plan, optimizer, mesh, abstract, teacher)
