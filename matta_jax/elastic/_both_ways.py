"""A step of a model, run with the weights of a plain model or with a part of its TA's."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from matta_jax.models import Architecture, Inputs, Modules, Plan, bind, bind_block, logits
from matta_jax.models.layers import Context
from matta_jax.nesting import Names, Size, Sizes, narrow_array, unflatten


@dataclasses.dataclass(frozen=True)
class Cut:
    """How weights are cut out of arrays of the TA's shape; hashable.

    Attributes:
      names: axis names of each weight, by path.
      sizes: what is kept of each axis.
    """

    names: Mapping[str, Names]
    sizes: Mapping[str, Size]

    def apply(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Cuts the weights."""
        parts = {}
        for path, weight in weights.items():
            parts[path] = narrow_array(weight, self.names[path], self.sizes)
        return parts


@dataclasses.dataclass(frozen=True)
class Pair:
    """The weights of some modules, twice.

    Attributes:
      plain: as written, by path.
      in_place: as read from the TA, in arrays of its shape.
      cut: how these are cut.
      plain_cut: how `plain` is, for an earlier pass; None: it is not.
    """

    plain: dict[str, np.ndarray]
    in_place: dict[str, np.ndarray]
    cut: Cut
    plain_cut: Cut | None


run_logits = jax.jit(logits)


def _cut_tree(cut: Cut | None, weights: dict[str, jax.Array]) -> Any:
    return unflatten(weights if cut is None else cut.apply(weights))


def _modules(plan: Plan, cut: Cut | None, weights: dict[str, jax.Array]) -> Modules:
    return bind(plan.family, plan.architecture.options, _cut_tree(cut, weights))


# Plan and cut are hashed: layers of equal sizes are compiled once. The cut is made inside, as in a
# step of training.
@functools.partial(jax.jit, static_argnums=(0, 1))
def enter(
    plan: Plan,
    cut: Cut | None,
    weights: Any,
    inputs: Inputs,
) -> Any:
    modules = _modules(plan, cut, weights)
    return plan.family.enter(modules, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def join(
    plan: Plan,
    cuts: tuple[Cut | None, Cut | None],
    weights: Any,
    earlier_weights: Any,
    x_ND: jax.Array,
    earlier_ND: jax.Array,
) -> jax.Array:
    modules, earlier = (
        _modules(plan, cut, part)
        for cut, part in zip(cuts, (weights, earlier_weights), strict=True)
    )
    return plan.family.join(modules, x_ND, earlier, earlier_ND)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_block(
    architecture: Architecture,
    cut: Cut | None,
    weights: Any,
    x_ND: jax.Array,
    context: Context,
) -> jax.Array:
    block = bind_block(architecture.family, architecture.options, _cut_tree(cut, weights))
    return block(x_ND, context)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def leave(
    plan: Plan,
    cut: Cut | None,
    weights: Any,
    x_ND: jax.Array,
    context: Any,
    sizes: Sizes,
) -> Any:
    modules = _modules(plan, cut, weights)
    return plan.family.leave(modules, x_ND, context, sizes)
