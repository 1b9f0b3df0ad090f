"""The joint forward pass: all sub-models of a step in one scan over the TA's layers.

The scanned body gathers a layer's weights once, in the compute type, and slices them for each
sub-model: gather, then slice, so that the step needs hardly more memory than the TA alone.
Sub-models with the same sizes in all layers so far share their hidden states, so a prefix Student
of a purely deeper TA costs nothing extra. Sizes that are data, not shapes, are branches of a
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

from matta_jax.models._plain import bind, bind_block
from matta_jax.models._plan import Plan
from matta_jax.models._streams import (
    Stream,
    cuts_of,
    make_streams,
    parts_that_vary,
    varied_axes,
)
from matta_jax.models._switch import lean_switch
from matta_jax.models.families import Inputs
from matta_jax.models.layers import Context, drop
from matta_jax.nesting import (
    RESIDUAL,
    Names,
    Size,
    Sizes,
    SubModel,
    Tree,
    fan_in,
    join_granules,
    layer_axes,
    narrow,
    narrow_axes,
    outside_blocks,
    sizes_of,
    stack_of,
)
from matta_jax.sharding import ONE_DEVICE, Placement

# `dots` keeps what matrices make of tokens. Attention's products have batch axes: their scores, of
# T·S numbers, are computed again with all that is cheap.
_POLICIES: dict[str, Callable[..., Any] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a pass computes.

    Attributes:
      dtype: of activations and matmuls.
      reduce_dtype: type in which gradients of matrices and tables are summed: `compute` for
        `dtype`, or float32.
      remat: what a layer keeps for its backward pass: dots, none (everything is kept) or full
        (nothing is).
      dropout: rate on the embeddings and each residual branch; needs a key.
      placement: where weights lie; they are gathered before they are sliced.
    """

    dtype: str = "float32"
    reduce_dtype: str = "compute"
    remat: str = "dots"
    dropout: float = 0.0
    placement: Placement = ONE_DEVICE


TRAINING = Compute()
"""For passes that are differentiated."""

IN_PLACE = Compute(remat="none")
"""For passes that are not."""


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
        outer[name] = _ready(part, outer_axes[name], compute)

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

    layers = _Layers(plan, params, context, compute, choices_SL, key)
    hidden = [x_ND[:, : sub_model.sizes[RESIDUAL]] for sub_model in sub_models]
    for start, stop in itertools.pairwise(cuts_of(streams, num_layers)):
        hidden = layers.run_segment(start, stop, streams, hidden)

    # Each by itself: a norm's statistics are those of its own width.
    exits = {name: outer[name] for name in plan.family.exits if name in outer}
    results = []
    for stream, x_ND in zip(streams, hidden, strict=True):
        modules = _narrow_modules(plan, exits, outer_axes, stream.sub_model)
        results.append(plan.family.leave(modules, x_ND, context))
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


def _ready(weights: Tree, axes: Tree, compute: Compute) -> Tree:
    """Weights as layers use them."""

    def ready(weight: jax.Array, names: Names) -> jax.Array:
        return _for_compute(weight, names, compute)

    return jax.tree.map(ready, weights, axes)


def _for_compute(weight: jax.Array, names: Names, compute: Compute) -> jax.Array:
    """A weight as layers use it: rounded to the compute type, then gathered.

    Its gradient is scattered before anything else, so that it is summed over devices only for where
    it goes. A matrix or table whose gradient is to be summed in a wider type is handed on in that
    type, with its rounded values.
    """
    is_wide = compute.reduce_dtype != "compute" and bool(fan_in(names))

    @jax.custom_vjp
    def ready(weight: jax.Array) -> jax.Array:
        # In this order: what travels between devices is of the narrower type.
        gathered = compute.placement.gather(weight.astype(compute.dtype), names)
        return gathered.astype(compute.reduce_dtype) if is_wide else gathered

    def forward(weight: jax.Array) -> tuple[jax.Array, None]:
        return ready(weight), None

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        scattered = compute.placement.scatter(gradient, names)
        return (scattered.astype(weight.dtype),)

    ready.defvjp(forward, backward)
    return ready(weight)


@dataclasses.dataclass(frozen=True)
class _Layers:
    """The TA's layers, and how a pass runs them."""

    plan: Plan
    params: Tree
    context: Context
    compute: Compute
    choices_SL: jax.Array
    key: jax.Array | None

    def run_segment(
        self, start: int, stop: int, streams: Sequence[Stream], hidden: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Runs layers start to stop; streams of one history run once, those that skip stand
        still.
        """
        # No stream changes within a segment, so that `start` tells whether it runs at all, and the
        # history up to `stop` with whom it runs.
        leaders: dict[tuple[Any, ...], int] = {}
        for i, stream in enumerate(streams):
            if stream.runs_in(start):
                leaders.setdefault(stream.history(stop), i)

        running = [streams[i] for i in leaders.values()]
        entering = [hidden[i] for i in leaders.values()]
        leaving = self._scan(start, stop, running, entering)

        by_history = dict(zip(leaders, leaving, strict=True))
        results = []
        for stream, x_ND in zip(streams, hidden, strict=True):
            results.append(by_history.get(stream.history(stop), x_ND))
        return results

    def _scan(
        self, start: int, stop: int, running: Sequence[Stream], hidden: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Scans the layers, all running streams side by side."""
        names = layer_axes(stack_of(self.plan.axes))

        def body(
            carry: tuple[jax.Array, ...], layer: tuple[Tree, jax.Array, jax.Array]
        ) -> tuple[Any, None]:
            weights, choice_S, index = layer
            # Once for all streams, which then slice without any traffic between devices.
            weights = _ready(weights, names, self.compute)
            key = None if self.key is None else jax.random.fold_in(self.key, index)
            results = []
            for stream, x_ND in zip(running, carry, strict=True):
                if stream.choice is None:
                    # Of the segment's first layer, and so of all its layers.
                    sizes = stream.sub_model.sizes_in(start)
                    results.append(self._run_layer(stream, sizes, weights, x_ND, key))
                else:
                    choice = choice_S[stream.choice]
                    results.append(self._run_chosen(stream, choice, weights, x_ND, key))
            return tuple(results), None

        if self.compute.remat != "none":
            policy = _POLICIES[self.compute.remat]
            # A scan's backward pass is a loop of its own, which the compiler does not merge with
            # the forward one; guards against that would cost time.
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)

        stack = stack_of(self.params)
        if (start, stop) != (0, self.plan.nest.num_layers):
            stack = jax.tree.map(lambda weight: weight[start:stop], stack)
        # Choices [L, S], and the indices [L] that tell layers' dropout apart.
        layers = (stack, self.choices_SL.T[start:stop], jnp.arange(start, stop))
        carry, _ = jax.lax.scan(body, tuple(hidden), layers)
        return list(carry)

    def _run_layer(
        self,
        stream: Stream,
        sizes: Sizes | None,
        weights: Tree,
        x_ND: jax.Array,
        key: jax.Array | None,
        part: str = "__call__",
    ) -> jax.Array:
        """Runs a layer, or a part of it, of these sizes; None stands for none."""
        if sizes is None:
            return x_ND
        names = layer_axes(stack_of(self.plan.axes))
        kept_sizes = sizes_of(stream.sub_model, sizes)
        block = _narrow_block(
            self.plan, weights, names, kept_sizes, joins=self.compute.placement.joins
        )
        run = getattr(block, part)
        return run(x_ND, self.context, dropout=self.compute.dropout, key=key)

    def _run_chosen(
        self,
        stream: Stream,
        choice: jax.Array,
        weights: Tree,
        x_ND: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """Runs a layer whose sizes are data."""
        # To skip a layer is to skip each of its parts: no part is the same in all options.
        if None in stream.options:
            branches = self._branches(stream, "__call__")
            return self._switch(choice, branches, weights, x_ND, key)

        varied = varied_axes([sizes for sizes in stream.options if sizes is not None])
        for part in parts_that_vary(self.plan, varied):
            # What is the same in all options runs once.
            if not part.varies:
                first = stream.options[0]
                x_ND = self._run_layer(stream, first, weights, x_ND, key, part.method)
                continue
            branches = self._branches(stream, part.method)
            x_ND = self._switch(choice, branches, weights, x_ND, key)
        return x_ND

    def _branches(self, stream: Stream, part: str) -> list[Callable[..., jax.Array]]:
        """A part of a layer at each of a stream's options."""
        branches: list[Callable[..., jax.Array]] = []
        for sizes in stream.options:
            branches.append(functools.partial(self._run_layer, stream, sizes, part=part))
        return branches

    def _switch(self, choice: jax.Array, branches: Any, *operands: Any) -> jax.Array:
        # `none` asks for nothing to be computed again, so neither is a branch.
        if self.compute.remat == "none":
            return jax.lax.switch(choice, branches, *operands)
        return lean_switch(choice, branches, *operands)


def _narrow_block(
    plan: Plan,
    weights: Tree,
    names: Tree,
    sizes: Mapping[str, Size],
    *,
    joins: bool,
) -> Any:
    """A layer with a part of the TA's weights."""
    weights = narrow(weights, names, sizes)
    # Joined after they are cut: granules that a sub-model does not use are not moved.
    if joins:
        weights = join_granules(weights, narrow_axes(names, sizes))
    return bind_block(plan.family, plan.architecture.options, weights)


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

    def skip(weights: Tree, x_ND: jax.Array) -> jax.Array:
        del weights
        return x_ND

    def run(option: Sizes, weights: Tree, x_ND: jax.Array) -> jax.Array:
        kept_sizes = sizes_of(sub_model, {**sub_model.sizes, **option})
        block = _narrow_block(plan, weights, names, kept_sizes, joins=True)
        return block(x_ND, context)

    options = plan.nest.layer_options
    branches: list[Callable[..., jax.Array]] = [skip]
    branches += [functools.partial(run, option) for option in options]

    def body(x_ND: jax.Array, layer: tuple[Tree, jax.Array]) -> tuple[jax.Array, None]:
        weights, choice = layer
        return jax.lax.switch(choice, branches, weights, x_ND), None

    x_ND, _ = jax.lax.scan(body, x_ND, (stack_of(params), choice_L))
    return plan.family.leave(modules, x_ND, context)
