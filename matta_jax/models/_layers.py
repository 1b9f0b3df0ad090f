"""The layers of a joint pass: segments in which no stream changes, each a scan.

Shape letters: N tokens, D d_model, L layers, S streams by choice.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from matta_jax.models._compute import Compute, ready
from matta_jax.models._plain import bind_block
from matta_jax.models._plan import Plan
from matta_jax.models._streams import Part, Stream, first_parts, parts_of
from matta_jax.models._switch import lean_map, lean_run, lean_switch
from matta_jax.models.layers import Context, with_products
from matta_jax.nesting import (
    Size,
    Sizes,
    Tree,
    join_granules,
    layer_axes,
    narrow,
    narrow_axes,
    sizes_of,
    stack_of,
)


class _Place(NamedTuple):
    """Where a pass is: what differs from layer to layer beside weights and residual stream.

    Attributes:
      layer: index of the TA's layer.
      key: of its dropout; None to drop nothing.
    """

    layer: jax.Array
    key: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Layers:
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

    def run_first(self, streams: Sequence[Stream], hidden: Sequence[jax.Array]) -> list[jax.Array]:
        """Runs layer 0, its first part once for all streams that have it in common."""
        stack = jax.tree.map(lambda weight: weight[0], stack_of(self.params))
        layer: Callable[..., list[jax.Array]] = with_products(
            functools.partial(self._first_layer, streams), are_kept=self.compute.keeps_products
        )
        if self.compute.remat != "none":
            layer = jax.checkpoint(layer, policy=self.compute.policy)
        return layer(stack, hidden, self.choices_SL[:, 0])

    def _first_layer(
        self,
        streams: Sequence[Stream],
        weights: Tree,
        hidden: Sequence[jax.Array],
        choice_S: jax.Array,
    ) -> list[jax.Array]:
        weights = ready(weights, layer_axes(stack_of(self.plan.axes)), self.compute)
        place = self._place(jnp.array(0))
        first_part, *other_parts = parts_of(self.plan)

        # What was run for a stream before: after the first part, and after the layer.
        begun: dict[Any, jax.Array] = {}
        ended: dict[Any, jax.Array] = {}
        results = []
        for stream, first_key, x_ND in zip(
            streams, first_parts(self.plan, streams), hidden, strict=True
        ):
            choice = None if stream.choice is None else choice_S[stream.choice]
            history = stream.history(1)
            if history in ended:
                results.append(ended[history])
                continue
            if first_key is None or None in stream.options:
                result_ND = self._run_any(stream, choice, weights, x_ND, place)
            else:
                if first_key not in begun:
                    begun[first_key] = self._run_parts(
                        stream, [first_part], choice, weights, x_ND, place
                    )
                result_ND = self._run_parts(
                    stream, other_parts, choice, weights, begun[first_key], place
                )
            ended[history] = result_ND
            results.append(result_ND)
        return results

    def _place(self, layer: jax.Array) -> _Place:
        key = None if self.key is None else jax.random.fold_in(self.key, layer)
        return _Place(layer, key)

    def _run_any(
        self,
        stream: Stream,
        choice: jax.Array | None,
        weights: Tree,
        x_ND: jax.Array,
        place: _Place,
    ) -> jax.Array:
        """Runs layer 0 as a whole, or skips it."""
        if choice is None:
            return self._run_layer(stream, stream.sub_model.sizes_in(0), weights, x_ND, place)
        return self._run_chosen(stream, choice, weights, x_ND, place)

    def _run_parts(
        self,
        stream: Stream,
        parts: Sequence[Part],
        choice: jax.Array | None,
        weights: Tree,
        x_ND: jax.Array,
        place: _Place,
    ) -> jax.Array:
        """Runs parts of a layer whose sizes may be data, or are those of layer 0."""
        options = stream.options or (stream.sub_model.sizes_in(0),)
        for part in parts:
            # What is the same in all options runs once.
            if part.varies(options):
                assert choice is not None, "sizes vary where they are data"
                branches = self._branches(stream, part.method)
                x_ND = self._switch(choice, branches, weights, x_ND, place)
            else:
                x_ND = self._run_layer(stream, options[0], weights, x_ND, place, part.method)
        return x_ND

    def _scan(
        self, start: int, stop: int, running: Sequence[Stream], hidden: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Scans the layers, in each of which all running streams run."""
        names = layer_axes(stack_of(self.plan.axes))
        # One stream after another, so that what it needs meanwhile is gone before the next begins:
        # side by side, as a TPU's compiler runs them by itself, more arrays leave the core.
        takes_turns = (
            self.compute.remat != "none" and len(running) > 1 and self.compute.placement.takes_turns
        )
        is_lean = takes_turns and self.compute.keeps_nothing

        def body(
            carry: tuple[jax.Array, ...], layer: tuple[Tree, jax.Array, jax.Array]
        ) -> tuple[Any, None]:
            weights, choice_S, index = layer
            # Once for all streams, which then slice without any traffic between devices.
            weights = ready(weights, names, self.compute)
            place = self._place(index)
            again = self._run_again(start, running, carry, choice_S, weights, place)
            results: list[jax.Array] = []
            for i, (stream, x_ND) in enumerate(zip(running, carry, strict=True)):
                if i in again:
                    results.append(again[i])
                    continue
                if results and takes_turns:
                    x_ND, results[-1] = jax.lax.optimization_barrier((x_ND, results[-1]))
                run = functools.partial(self._run_stream, stream, start)
                if is_lean:
                    run = functools.partial(lean_run, run)
                results.append(run(weights, x_ND, (place, choice_S)))
            return tuple(results), None

        body = with_products(body, are_kept=self.compute.keeps_products)
        if self.compute.remat != "none":
            # A scan's backward pass is a loop of its own, which the compiler does not merge with
            # the forward one; guards against that would cost time.
            body = jax.checkpoint(body, policy=self.compute.policy, prevent_cse=False)

        stack = stack_of(self.params)
        if (start, stop) != (0, self.plan.nest.num_layers):
            stack = jax.tree.map(lambda weight: weight[start:stop], stack)
        # Choices [L, S], and the indices [L] that tell layers' dropout apart.
        layers = (stack, self.choices_SL.T[start:stop], jnp.arange(start, stop))
        carry, _ = jax.lax.scan(body, tuple(hidden), layers)
        return list(carry)

    def _run_stream(
        self,
        stream: Stream,
        start: int,
        weights: Tree,
        x_ND: jax.Array,
        where: tuple[_Place, jax.Array],
    ) -> jax.Array:
        """Runs a layer of a segment that begins at layer `start`; `where` has its choices too."""
        place, choice_S = where
        if stream.choice is None:
            # Of the segment's first layer, and so of all its layers.
            sizes = stream.sub_model.sizes_in(start)
            return self._run_layer(stream, sizes, weights, x_ND, place)
        return self._run_chosen(stream, choice_S[stream.choice], weights, x_ND, place)

    def _run_again(
        self,
        start: int,
        running: Sequence[Stream],
        hidden: Sequence[jax.Array],
        choice_S: jax.Array,
        weights: Tree,
        place: _Place,
    ) -> dict[int, jax.Array]:
        """Runs the streams that keep nothing, those of one width one after another; returns their
        residual streams by index.
        """
        ta_sizes = self.plan.nest.ta.sizes_in(0)
        by_width = collections.defaultdict(list)
        for i, stream in enumerate(running):
            is_ta = stream.choice is None and stream.sub_model.sizes_in(start) == ta_sizes
            if self.compute.remat == "ta" and not is_ta:
                by_width[hidden[i].shape[1]].append(i)

        results: dict[int, jax.Array] = {}
        for indices in by_width.values():
            branches: list[Callable[..., jax.Array]] = []
            chosen = []
            for i in indices:
                stream = running[i]
                first = len(branches)
                if stream.choice is None:
                    sizes = stream.sub_model.sizes_in(start)
                    branches.append(functools.partial(self._run_layer, stream, sizes))
                    chosen.append(jnp.array(first))
                else:
                    branches += self._branches(stream, "__call__")
                    chosen.append(first + choice_S[stream.choice])
            x_SND = jnp.stack([hidden[i] for i in indices])
            ran_SND = lean_map(jnp.stack(chosen), branches, weights, x_SND, place)
            results |= dict(zip(indices, ran_SND, strict=True))
        return results

    def _run_layer(
        self,
        stream: Stream,
        sizes: Sizes | None,
        weights: Tree,
        x_ND: jax.Array,
        place: _Place,
        part: str = "__call__",
    ) -> jax.Array:
        """Runs a layer, or a part of it, of these sizes; None stands for none."""
        if sizes is None:
            return x_ND
        names = layer_axes(stack_of(self.plan.axes))
        kept_sizes = sizes_of(stream.sub_model, sizes)
        block = narrow_block(
            self.plan, weights, names, kept_sizes, joins=self.compute.placement.joins
        )
        run = getattr(block, part)
        context = self.context.at(place.layer)
        return run(x_ND, context, dropout=self.compute.dropout, key=place.key)

    def _run_chosen(
        self,
        stream: Stream,
        choice: jax.Array,
        weights: Tree,
        x_ND: jax.Array,
        place: _Place,
    ) -> jax.Array:
        """Runs a layer whose sizes are data."""
        # To skip a layer is to skip each of its parts: no part is the same in all options.
        if None in stream.options:
            branches = self._branches(stream, "__call__")
            return self._switch(choice, branches, weights, x_ND, place)
        return self._run_parts(stream, parts_of(self.plan), choice, weights, x_ND, place)

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


def narrow_block(
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
