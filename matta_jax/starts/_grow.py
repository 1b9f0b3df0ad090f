"""Growth: a TA around a trained Student; and the reverse, a trained large model made ready to be a
TA.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.models import Architecture, block_importance, init_params, logical_axes, module_apply
from matta_jax.nesting import (
    Names,
    Nest,
    Tree,
    flatten,
    logical_names,
    merge_granules,
    place_array,
    sizes_of,
    split_granules,
    unflatten,
)


def grow(
    student: Tree,
    architecture: Architecture,
    nest: Nest,
    key: jax.Array,
    *,
    noise: float | None = None,
) -> Tree:
    """Makes a TA around a trained Student, M-nesting in reverse order.

    The Student's slice of the TA is the Student, bit for bit. New heads, neurons and layers write
    nothing to the residual stream at first (`noise=None`), so that the TA starts at the Student's
    function. A wider residual stream repeats the Student's dimensions, which keeps the statistics
    of its norms: exactly when the new width is a multiple of the old, else about. Nothing reads the
    repeated dimensions at first.

    Args:
      student: weights of a plain model with the TA's granules.
      architecture: of the TA.
      nest: Student and TA.
      key: of the fresh parts.
      noise: scale of the new output projections, of that of a fresh TA; None for zeros.
    """
    fresh, names = (
        flatten(jax.tree.map(np.array, init_params(architecture, key, nest))),
        flatten(logical_axes(architecture)),
    )
    sizes = sizes_of(nest.student, nest.student.d_ff[0]) | {"layers": nest.student.layers}
    sizes.pop("d_model")  # Every part is first given the TA's d_model.
    grown = {}
    for path, whole in fresh.items():
        if path.startswith("blocks/") and path.rsplit("/", 1)[-1] in ("w_out", "b_out"):
            whole *= 0.0 if noise is None else noise
        part = _widened(
            np.asarray(flatten(student)[path]), names[path], nest.ta.d_model, repeat=_repeats(path)
        )
        place_array(part, whole, names[path], sizes)
        grown[path] = jnp.asarray(whole)
    return unflatten(grown)


def _repeats(path: str) -> bool:
    """Whether a weight repeats the Student's entries on new dimensions of the residual stream: what
    writes to it does, and the norms in the blocks; what reads from it, the head's norm among them,
    has zeros there."""
    return not path.endswith(("w_qkv", "w_in")) and not path.startswith(("norm/", "head/"))


def _widened(part: np.ndarray, names: Names, d_model: int, *, repeat: bool) -> np.ndarray:
    if "d_model" not in names:
        return part
    axis = names.index("d_model")
    own = part.shape[axis]
    if repeat:
        return np.take(part, np.arange(d_model) % own, axis=axis)
    return np.pad(part, [(0, d_model - own if i == axis else 0) for i in range(part.ndim)])


def sort_by_importance(params: Tree, architecture: Architecture, tokens_BT: jax.Array) -> Tree:
    """Permutes the heads and neurons of each layer, the most important first; the function stays
    the same.

    Importance is the mean norm, over tokens, of what a head or a neuron adds to the residual
    stream.

    Args:
      params: weights of a plain model of one width.
      architecture: of the model.
      tokens_BT: a calibration batch.
    """
    names = {
        path: axes[1:] for path, axes in flatten(logical_axes(architecture)["blocks"]["0"]).items()
    }
    granules = architecture.granules
    seq_len = tokens_BT.shape[1]
    block = jax.jit(lambda weights, x_ND: module_apply("block", weights, x_ND, seq_len))
    importance = jax.jit(lambda weights, x_ND: block_importance(weights, x_ND, seq_len))
    x_ND = module_apply("embed", params["embed"], tokens_BT)
    layers = []
    for layer in range(len(architecture.d_ff)):
        weights = jax.tree.map(lambda stack, layer=layer: stack[layer], params["blocks"]["0"])
        by_axis = dict(zip(("heads", "d_ff"), importance(weights, x_ND), strict=True))
        order = {
            axis: np.argsort(-np.ravel(values), kind="stable") for axis, values in by_axis.items()
        }
        sorted_ = {
            path: _permuted(leaf, names[path], order, granules)
            for path, leaf in flatten(weights).items()
        }
        layers.append(unflatten(sorted_))
        x_ND = block(weights, x_ND)
    return params | {"blocks": {"0": jax.tree.map(lambda *stack: jnp.stack(stack), *layers)}}


def _permuted(
    weight: Any, names: Names, order: Mapping[str, np.ndarray], granules: Mapping[str, int]
) -> Any:
    merged = merge_granules(weight, names)
    for axis, name in enumerate(logical_names(names)):
        if name in order:
            merged = jnp.take(merged, order[name], axis=axis)
    return split_granules(merged, names, granules)
