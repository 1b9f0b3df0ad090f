"""Growth: a TA around a trained Student; and the reverse, a trained large model made ready to be a
TA.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.models import Family, Inputs, Plan, bind, bind_block, init_params, silent_values
from matta_jax.nesting import (
    BLOCKS,
    LAYERS,
    RESIDUAL,
    Names,
    Tree,
    flatten,
    layer_axes,
    logical_names,
    merge_granules,
    outside_blocks,
    place_array,
    reads_residual,
    sizes_of,
    split_granules,
    stack_of,
    unflatten,
    writes_residual,
)


def grow(student: Tree, plan: Plan, key: jax.Array, *, noise: float | None = None) -> Tree:
    """Makes a TA around a trained Student, M-nesting in reverse order.

    The Student's slice of the TA is the Student, bit for bit. New heads, neurons and layers write
    nothing to the residual stream at first (`noise=None`), so that the TA starts at the Student's
    function. A wider residual stream repeats the Student's dimensions, which keeps the statistics
    of its norms: exactly when the new width is a multiple of the old, else about. Nothing reads the
    repeated dimensions at first.

    Args:
      student: weights of a plain model with the TA's granules.
      plan: of the run: Student and TA.
      key: of the fresh parts.
      noise: scale of the new output projections, of that of a fresh TA; None for zeros.
    """
    nest = plan.nest
    fresh = flatten(init_params(plan.architecture, key, nest))
    names, student_weights = flatten(plan.axes), flatten(student)
    silent = silent_values(plan.architecture)
    sizes = sizes_of(nest.student) | {LAYERS: nest.student.layers}
    # Every part is first given the TA's residual stream.
    del sizes[RESIDUAL]

    grown = {}
    for path, weight in fresh.items():
        # A module that the Student is without, which adds nothing when it is fresh.
        if path not in student_weights:
            grown[path] = weight
            continue
        # With output projections of zeros, the new parts add nothing to the residual stream.
        if path.startswith(f"{BLOCKS}/") and writes_residual(names[path]):
            weight = weight * (0.0 if noise is None else noise)
        part = _widened(
            student_weights[path],
            names[path],
            nest.ta.sizes[RESIDUAL],
            filling=None if _repeats(path, names[path], plan.family) else silent[path],
        )
        grown[path] = place_array(part, weight, names[path], sizes)
    return unflatten(grown)


def _repeats(path: str, names: Names, family: Family) -> bool:
    """Whether a weight repeats the Student's entries on new dimensions of the residual stream: what
    writes to it does, and the norms in the layers; what reads from it, the norm of the head among
    it, is silent there.
    """
    is_exit = path.partition("/")[0] in family.exits
    return not is_exit and not reads_residual(names)


def _widened(part: jax.Array, names: Names, d_model: int, *, filling: float | None) -> jax.Array:
    """A weight on a wider residual stream; its new dimensions repeat the old, or have one value."""
    if RESIDUAL not in names:
        return part
    axis = names.index(RESIDUAL)
    old_size = part.shape[axis]
    if filling is None:
        return jnp.take(part, np.arange(d_model) % old_size, axis=axis)
    padding = [(0, d_model - old_size if i == axis else 0) for i in range(part.ndim)]
    return jnp.pad(part, padding, constant_values=filling)


def sort_by_importance(params: Tree, plan: Plan, inputs: Inputs) -> Tree:
    """Permutes the heads and neurons of each layer, the most important first; the function stays
    the same.

    Importance is the mean norm, over tokens, of what a head or a neuron adds to the residual
    stream.

    Args:
      params: weights of the TA.
      plan: of the run.
      inputs: of a calibration batch.
    """
    family, options = plan.family, plan.architecture.options
    names = flatten(layer_axes(stack_of(plan.axes)))
    granules = plan.nest.granules
    x_ND, context = family.enter(bind(family, options, outside_blocks(params)), inputs)

    def sorted_layer(x_ND: jax.Array, numbered: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
        layer, weights = numbered
        block, here = bind_block(family, options, weights), context.at(layer)
        # Stable, so that equals stay in their order and a sorted model stays as it is.
        order = {
            axis: jnp.argsort(-jnp.ravel(values), stable=True)
            for axis, values in block.importance(x_ND, here).items()
        }
        ordered = {
            path: _permuted(leaf, names[path], order, granules)
            for path, leaf in flatten(weights).items()
        }
        return block(x_ND, here), unflatten(ordered)

    layers = jnp.arange(plan.nest.num_layers)
    _, stack = jax.lax.scan(sorted_layer, x_ND, (layers, stack_of(params)))
    return params | {BLOCKS: {"0": stack}}


def _permuted(
    weight: jax.Array, names: Names, order: Mapping[str, jax.Array], granules: Mapping[str, int]
) -> jax.Array:
    # Entries move between granules, so the order is of the logical axis, without them.
    merged = merge_granules(weight, names)
    for axis, name in enumerate(logical_names(names)):
        if name in order:
            merged = jnp.take(merged, order[name], axis=axis)
    return split_granules(merged, names, granules)
