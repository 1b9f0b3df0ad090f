"""The joint forward pass: all sub-models of a step in one scan over the TA's layers.

The scanned body gathers a layer's weights once, in the compute type, and slices them for each
sub-model: gather, then slice, so that the step needs hardly more memory than the TA alone.
Sub-models with the same sizes in all layers so far share their hidden states, so a prefix Student
of a purely deeper TA costs nothing extra; those that differ in d_ff alone share the attention of
the first layer, which then runs before the scan. Sizes that are data, not shapes, are branches of a
`lax.switch` over the nest's options: one compile serves every mix.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model, L layers, S streams by choice.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.models._compute import IN_PLACE, TRAINING, Compute, ready
from matta_jax.models._layers import Layers, narrow_block
from matta_jax.models._plain import bind
from matta_jax.models._plan import Plan
from matta_jax.models._streams import cuts_of, has_common_part, make_streams
from matta_jax.models.families import Inputs
from matta_jax.models.layers import drop
from matta_jax.nesting import (
    RESIDUAL,
    Sizes,
    SubModel,
    Tree,
    layer_axes,
    narrow,
    outside_blocks,
    sizes_of,
    stack_of,
)


def joint_apply(
    plan: Plan,
    params: Tree,
    inputs: Inputs,
    members: Sequence[SubModel | jax.Array],
    *,
    compute: Compute = TRAINING,
    key: jax.Array | None = None,
) -> list[jax.Array]:
    """Runs several sub-models of a TA in one pass.

    Args:
      plan: of the run.
      params: the TA's weights, all layers in one stack.
      inputs: of the batch, by name.
      members: sub-models; or for a random mix of the TA's depth and d_model the choice [L] of each
        layer, an index into `plan.nest.layer_options`, which may be traced.
      compute: how.
      key: of dropout; None to drop nothing.

    Returns:
      The normed hidden states [N, d_model of the sub-model] of each member; of a family without a
      table the logits [B, classes], or [B] of a sigmoid.
    """
    streams, choices_SL = make_streams(plan.nest, members)
    outer_axes = outside_blocks(plan.axes)
    outer = {}
    for name, part in outside_blocks(params).items():
        outer[name] = ready(part, outer_axes[name], compute)

    # One look-up for all: columns of a table's rows are rows of its columns.
    sub_models = [stream.sub_model for stream in streams]
    widest = max(sub_models, key=lambda sub_model: sub_model.sizes[RESIDUAL])
    modules = _narrow_modules(plan, outer, outer_axes, widest)
    x_ND, context = plan.family.enter(modules, inputs)

    # Layers fold their index into the key, and the embeddings the first number that is none.
    num_layers = plan.nest.num_layers
    entry_key = None if key is None else jax.random.fold_in(key, num_layers)
    # One mask for all: a narrower sub-model drops what the widest drops of its entries.
    x_ND = drop(x_ND.astype(compute.dtype), compute.dropout, entry_key)

    layers = Layers(plan, params, context, compute, choices_SL, key)
    hidden = [x_ND[:, : sub_model.sizes[RESIDUAL]] for sub_model in sub_models]
    cuts = cuts_of(streams, num_layers)
    if has_common_part(plan, streams):
        hidden = layers.run_first(streams, hidden)
        cuts = sorted({1, *cuts} - {0})
    for start, stop in itertools.pairwise(cuts):
        hidden = layers.run_segment(start, stop, streams, hidden)

    # Each by itself: a norm's statistics are those of its own width.
    exits = {name: outer[name] for name in plan.family.exits if name in outer}
    results = []
    for stream, x_ND in zip(streams, hidden, strict=True):
        modules = _narrow_modules(plan, exits, outer_axes, stream.sub_model)
        results.append(plan.family.leave(modules, x_ND, context, stream.sub_model.sizes))
    return results


def _narrow_modules(
    plan: Plan,
    outer: Tree,
    axes: Tree,
    sub_model: SubModel,
) -> Any:
    names = {name: axes[name] for name in outer}
    weights = narrow(outer, names, sizes_of(sub_model))
    return bind(plan.family, plan.architecture.options, weights)


def sub_model_apply(
    plan: Plan,
    params: Tree,
    inputs: Inputs,
    sub_model: SubModel,
    *,
    compute: Compute = IN_PLACE,
) -> jax.Array:
    """Runs one sub-model in place, as a slice of its TA; returns what `joint_apply` does of it."""
    return joint_apply(plan, params, inputs, [sub_model], compute=compute)[0]


def candidate_apply(
    plan: Plan,
    params: Tree,
    inputs: Inputs,
    choice_L: jax.Array,
    sub_model: SubModel,
) -> jax.Array:
    """Runs one sub-model in place whose layers are data, so that one program runs all of a depth
    and width.

    Args:
      plan: of the run.
      params: the TA's weights.
      inputs: of the batch, by name.
      choice_L: for each layer of the TA 0 to skip it, or 1 + an index into
        `plan.nest.layer_options`; may be traced.
      sub_model: tells the sizes that layers have alike.

    Returns:
      What `joint_apply` does, in float32.
    """
    plan.nest.check_options(sub_model)
    names = layer_axes(stack_of(plan.axes))
    outer = outside_blocks(params)
    outer_axes = outside_blocks(plan.axes)
    modules = _narrow_modules(plan, outer, outer_axes, sub_model)
    x_ND, context = plan.family.enter(modules, inputs)

    def skip(weights: Tree, x_ND: jax.Array, index: jax.Array) -> jax.Array:
        del weights, index
        return x_ND

    def run(option: Sizes, weights: Tree, x_ND: jax.Array, index: jax.Array) -> jax.Array:
        kept_sizes = sizes_of(sub_model, {**sub_model.sizes, **option})
        block = narrow_block(plan, weights, names, kept_sizes, joins=True)
        return block(x_ND, context.at(index))

    options = plan.nest.layer_options
    branches: list[Callable[..., jax.Array]] = [skip]
    branches += [functools.partial(run, option) for option in options]

    def body(x_ND: jax.Array, layer: tuple[Tree, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weights, choice, index = layer
        return jax.lax.switch(choice, branches, weights, x_ND, index), None

    layers = (stack_of(params), choice_L, jnp.arange(plan.nest.num_layers))
    x_ND, _ = jax.lax.scan(body, x_ND, layers)
    return plan.family.leave(modules, x_ND, context, sub_model.sizes)
