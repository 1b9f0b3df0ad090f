"""The joint forward pass: all sub-models of a step in one scan over the TA's layers.

The scanned body gathers a layer's weights once, in the compute type, and slices them for each
sub-model: gather, then slice, so that the step needs hardly more memory than the TA alone.
Sub-models with the same sizes in all layers so far share their hidden states, so a prefix Student
of a purely deeper TA costs nothing extra; those that differ in d_ff alone share the attention of
the first layer, which then runs before the scan. Sizes that are data, not shapes, are branches of a
`lax.switch` over the nest's options: one compile serves every mix.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model, L layers, S streams by choice.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.models._compute import IN_PLACE, TRAINING, Compute, ready
from matta_jax.models._layers import Layers, narrow_block
from matta_jax.models._plain import bind
from matta_jax.models._plan import Plan
from matta_jax.models._streams import Stream, cuts_of, has_common_part, make_streams, waves_of
from matta_jax.models.families import Inputs, Modules
from matta_jax.models.layers import Context, drop
from matta_jax.nesting import (
    RESIDUAL,
    Sizes,
    SubModel,
    Tree,
    layer_axes,
    narrow_modules,
    outside_blocks,
    sizes_of,
    stack_of,
    training_sizes,
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
    outer_axes = outside_blocks(plan.axes)
    beside = dataclasses.replace(compute, placement=compute.placement.beside_layers)
    outer = {}
    for name, part in outside_blocks(params).items():
        outer[name] = ready(part, outer_axes[name], beside)
    joint = _JointPass(plan, params, outer, inputs, compute, key)

    passes, waves = waves_of(plan, members)
    results: list[Any] = [None] * len(passes)
    # The residual stream at the end of each pass from which another may go on.
    ends: dict[SubModel, jax.Array] = {}
    for wave in waves:
        streams, choices_SL = make_streams(plan, [passes[i] for i in wave])
        hidden, context = joint.run(streams, choices_SL, ends)
        for i, stream, x_ND in zip(wave, streams, hidden, strict=True):
            # Each by itself: a norm's statistics are those of its own width.
            if i < len(members):
                results[i] = joint.leave(stream.sub_model, x_ND, context)
            # Choices of a random mix are data, and no pass goes on from one.
            if isinstance(passes[i], SubModel):
                ends[stream.sub_model] = x_ND
    return results[: len(members)]


@dataclasses.dataclass(frozen=True)
class _JointPass:
    """A joint pass over a batch; `outer` are the modules beside the layers, ready to be sliced, and
    the other attributes are as of `joint_apply`.
    """

    plan: Plan
    params: Tree
    outer: Tree
    inputs: Inputs
    compute: Compute
    key: jax.Array | None

    def run(
        self,
        streams: Sequence[Stream],
        choices_SL: jax.Array,
        ends: Mapping[SubModel, jax.Array],
    ) -> tuple[list[jax.Array], Context]:
        """Runs streams side by side; returns the residual stream of each after the layers.

        Args:
          streams: those of a wave.
          choices_SL: of `make_streams`.
          ends: the residual streams that earlier passes ended with.
        """
        plan = self.plan
        num_layers = plan.nest.num_layers
        hidden, context = self._enter([stream.sub_model for stream in streams])
        for i, stream in enumerate(streams):
            if stream.earlier is not None:
                earlier_ND = ends[stream.earlier]
                modules, earlier_modules = map(self._modules, (stream.sub_model, stream.earlier))
                hidden[i] = plan.family.join(modules, hidden[i], earlier_modules, earlier_ND)

        layers = Layers(plan, self.params, context, self.compute, choices_SL, self.key)
        cuts = cuts_of(streams, num_layers)
        # What is run for all at once would be kept for each.
        if has_common_part(plan, streams) and self.compute.remat != "ta":
            hidden = layers.run_first(streams, hidden)
            cuts = sorted({1, *cuts} - {0})
        for start, stop in itertools.pairwise(cuts):
            hidden = layers.run_segment(start, stop, streams, hidden)
        return hidden, context

    def _enter(self, sub_models: Sequence[SubModel]) -> tuple[list[jax.Array], Context]:
        # One look-up for all: columns of a table's rows are rows of its columns.
        widest = max(sub_models, key=lambda sub_model: sub_model.sizes[RESIDUAL])
        x_ND, context = self.plan.family.enter(self._modules(widest), self.inputs)
        context = context.on(self.compute.placement)

        # Layers fold their index into the key, and the embeddings the first number that is none.
        num_layers = self.plan.nest.num_layers
        entry_key = None if self.key is None else jax.random.fold_in(self.key, num_layers)
        # One mask for all: a narrower sub-model drops what the widest drops of its entries.
        x_ND = drop(x_ND.astype(self.compute.dtype), self.compute.dropout, entry_key)
        return [x_ND[:, : sub_model.sizes[RESIDUAL]] for sub_model in sub_models], context

    def _modules(self, sub_model: SubModel) -> Modules:
        return _narrow_modules(self.plan, self.outer, outside_blocks(self.plan.axes), sub_model)

    def leave(self, sub_model: SubModel, x_ND: jax.Array, context: Context) -> jax.Array:
        """What a sub-model gives of its residual stream after the layers."""
        exits = {name: self.outer[name] for name in self.plan.family.exits if name in self.outer}
        modules = _narrow_modules(self.plan, exits, outside_blocks(self.plan.axes), sub_model)
        return self.plan.family.leave(modules, x_ND, context, sub_model.sizes)


def _narrow_modules(
    plan: Plan,
    outer: Tree,
    axes: Tree,
    sub_model: SubModel,
) -> Modules:
    weights = narrow_modules(outer, axes, training_sizes(sub_model))
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
    *,
    compute: Compute = IN_PLACE,
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
      compute: in which type, and where weights lie.

    Returns:
      What `joint_apply` does, in the compute type.
    """
    plan.nest.check_options(sub_model)
    options: list[Sizes] = []
    for option in plan.nest.layer_options:
        options.append({**sub_model.sizes, **option})
    candidate = _Candidate(plan, params, inputs, choice_L, compute)
    modules, x_ND, context = candidate.run(sub_model, options)
    return plan.family.leave(modules, x_ND, context, sub_model.sizes)


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A batch for sub-models whose layers are data; attributes as of `candidate_apply`."""

    plan: Plan
    params: Tree
    inputs: Inputs
    choice_L: jax.Array
    compute: Compute

    def run(
        self, sub_model: SubModel, options: Sequence[Sizes]
    ) -> tuple[Modules, jax.Array, Context]:
        """Runs a pass, and those before it, up to its exit; returns its modules beside the layers
        too. `options` are the sizes of a layer for each option of the nest.
        """
        plan = self.plan
        names = layer_axes(stack_of(plan.axes))
        outer_axes = outside_blocks(plan.axes)
        outer = {}
        for name, part in outside_blocks(self.params).items():
            outer[name] = ready(part, outer_axes[name], self.compute)
        modules = _narrow_modules(plan, outer, outer_axes, sub_model)
        x_ND, context = plan.family.enter(modules, self.inputs)
        x_ND = x_ND.astype(self.compute.dtype)
        earlier = plan.earlier(sub_model)
        if earlier is not None:
            facts = plan.architecture.options
            earlier_options = [plan.family.earlier(sizes, facts) or {} for sizes in options]
            earlier_modules, earlier_ND, _ = self.run(earlier, earlier_options)
            x_ND = plan.family.join(modules, x_ND, earlier_modules, earlier_ND)

        def skip(weights: Tree, x_ND: jax.Array, index: jax.Array) -> jax.Array:
            del weights, index
            return x_ND

        def run(sizes: Sizes, weights: Tree, x_ND: jax.Array, index: jax.Array) -> jax.Array:
            kept_sizes = sizes_of(sub_model, sizes)
            joins = self.compute.placement.joins
            block = narrow_block(plan, weights, names, kept_sizes, joins=joins)
            return block(x_ND, context.at(index))

        branches: list[Callable[..., jax.Array]] = [skip]
        branches += [functools.partial(run, sizes) for sizes in options]

        def body(
            x_ND: jax.Array, layer: tuple[Tree, jax.Array, jax.Array]
        ) -> tuple[jax.Array, None]:
            weights, choice, index = layer
            weights = ready(weights, names, self.compute)
            return jax.lax.switch(choice, branches, weights, x_ND, index), None

        layers = (stack_of(self.params), self.choice_L, jnp.arange(plan.nest.num_layers))
        x_ND, _ = jax.lax.scan(body, x_ND, layers)
        return modules, x_ND, context
