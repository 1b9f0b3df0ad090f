"""Streams: the sub-models of a step on their way through the layers."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from immutabledict import immutabledict

from matta_jax.models._plan import Plan
from matta_jax.nesting import (
    BLOCKS,
    RESIDUAL,
    Nest,
    Sizes,
    SubModel,
    flatten,
    layer_axes,
    stack_of,
)

# Each run of layers is a scan to compile; a mix of more runs than this goes by lax.switch.
_MAX_STATIC_RUNS = 4


@dataclasses.dataclass(frozen=True)
class Stream:
    """One sub-model on its way through the layers.

    Attributes:
      sub_model: its sizes, and its layers where these are static.
      choice: for a stream that chooses by data, its row of the choice array; else None.
      options: what each choice means: sizes of a layer, or None, which skips it.
      earlier: the pass from which it goes on; None: it starts afresh.
    """

    sub_model: SubModel
    choice: int | None = None
    options: tuple[Sizes | None, ...] = ()
    earlier: SubModel | None = None

    @property
    def start(self) -> tuple[Any, ...]:
        """Equal ones mean equal hidden states before the first layer, of the same part of them."""
        return (self.sub_model.sizes[RESIDUAL], self.sub_model.member, self.earlier)

    def history(self, stop: int) -> tuple[Any, ...]:
        """Equal histories mean equal hidden states after `stop` layers.

        A member that owns weights has a history of its own.
        """
        # Choices are unknown when this is traced, so no two of them count as equal.
        if self.choice is not None:
            return (*self.start, "choice", self.choice)
        return (*self.start, *map(self.sub_model.sizes_in, range(stop)))

    def runs_in(self, layer: int) -> bool:
        """Whether it may run a layer."""
        return self.choice is not None or self.sub_model.sizes_in(layer) is not None


def make_streams(
    plan: Plan, members: Sequence[SubModel | jax.Array]
) -> tuple[list[Stream], jax.Array]:
    """Returns the streams and the choices [rows, L] of those that choose by data.

    Args:
      plan: of the run.
      members: sub-models; or of a mix of the TA the choice [L] of each layer, an index into
        `plan.nest.layer_options`.
    """
    nest = plan.nest
    streams: list[Stream] = []
    rows: list[jax.Array] = []
    for member in members:
        if not isinstance(member, SubModel):
            earlier = plan.earlier(nest.ta)
            streams.append(Stream(nest.ta, len(rows), _mix_options(nest), earlier))
            rows.append(member)
            continue

        layers = [member.sizes_in(layer) for layer in range(nest.num_layers)]
        if _num_changes(layers) < _MAX_STATIC_RUNS:
            streams.append(Stream(member, earlier=plan.earlier(member)))
            continue

        # One branch for each set of sizes, though many layers have it.
        options = tuple(dict.fromkeys(layers))
        streams.append(Stream(member, len(rows), options, plan.earlier(member)))
        choice_L = [options.index(sizes) for sizes in layers]
        rows.append(jnp.array(choice_L, jnp.int32))

    # A scan takes this array along with the weights, also where nothing is chosen.
    choices_SL = jnp.stack(rows) if rows else jnp.zeros((0, nest.num_layers), jnp.int32)
    return streams, choices_SL


def waves_of(
    plan: Plan, members: Sequence[SubModel | jax.Array]
) -> tuple[list[SubModel | jax.Array], list[list[int]]]:
    """What a joint pass of these members runs, as `make_streams` takes it: the members, and after
    them the earlier passes that they go on from; and the waves in which it does so, each a list of
    indices into these.
    """
    passes = list(members)
    static = {member for member in members if isinstance(member, SubModel)}
    numbers: list[int] = []
    # The list grows: an earlier pass may go on from another.
    for model_pass in passes:
        # All random mixes are of the TA, and have its earlier pass.
        earlier = plan.earlier(model_pass if isinstance(model_pass, SubModel) else plan.nest.ta)
        if earlier is not None and earlier not in static:
            static.add(earlier)
            passes.append(earlier)
        numbers.append(0 if earlier is None else len(plan.passes(earlier)))

    waves = []
    for number in range(max(numbers, default=-1) + 1):
        waves.append([i for i, own_number in enumerate(numbers) if own_number == number])
    return passes, waves


def first_parts(plan: Plan, streams: Sequence[Stream]) -> list[tuple[Any, ...] | None]:
    """Of each stream what decides its hidden states after the first part of layer 0: equal for
    streams of which one can run it for all; None for those that skip the layer.
    """
    part = parts_of(plan)[0]
    keys: list[tuple[Any, ...] | None] = []
    for stream in streams:
        # An embedding that is cut to the same width enters them all.
        start = stream.start
        options = stream.options or (stream.sub_model.sizes_in(0),)
        first = options[0]
        if options == (None,):
            keys.append(None)
        elif first is None or None in options or part.varies(options):
            keys.append((*start, "choice", stream.choice))
        else:
            keys.append((*start, *part.sizes(first)))
    return keys


def goes_along(plan: Plan, members: Sequence[SubModel], mixes: int) -> list[bool]:
    """Of each member, and then of each random mix, whether one before it runs the first part of
    layer 0 for it too.
    """
    choices = [jnp.zeros(plan.nest.num_layers, jnp.int32)] * mixes
    streams, _ = make_streams(plan, [*members, *choices])
    keys = first_parts(plan, streams)
    return [key is not None and key in keys[:i] for i, key in enumerate(keys)]


def layers_apart(plan: Plan, members: Sequence[SubModel]) -> list[tuple[int, ...]]:
    """Of each member the layers that it runs by itself: not those in which it goes along with one
    before it, as their hidden states are the same.
    """
    streams, _ = make_streams(plan, members)
    # A number for each history: the history itself would be as long as the model is deep.
    numbers: dict[tuple[Any, ...], int] = {}
    seen: set[int] = set()
    apart = []
    for stream in streams:
        number = numbers.setdefault(stream.history(0), len(numbers))
        layers = []
        for layer in range(plan.nest.num_layers):
            sizes = stream.sub_model.sizes_in(layer)
            number = numbers.setdefault((number, layer, sizes), len(numbers))
            if sizes is not None and number not in seen:
                seen.add(number)
                layers.append(layer)
        apart.append(tuple(layers))
    return apart


def _mix_options(nest: Nest) -> tuple[Sizes, ...]:
    """The sizes of a layer of the TA for each of the nest's options."""
    options = []
    for option in nest.layer_options:
        options.append(immutabledict({**nest.ta.sizes, **option}))
    return tuple(options)


def _num_changes(layers: Sequence[Sizes | None]) -> int:
    return sum(sizes != next_sizes for sizes, next_sizes in itertools.pairwise(layers))


def has_common_part(plan: Plan, streams: Sequence[Stream]) -> bool:
    """Whether streams that part within layer 0 run the first part of it together."""
    running = [stream for stream in streams if stream.runs_in(0)]
    histories = {stream.history(1) for stream in running}
    return len(set(first_parts(plan, running))) < len(histories)


def cuts_of(streams: Sequence[Stream], num_layers: int) -> list[int]:
    """Layers at which a static stream starts, stops or changes its sizes, with both ends."""
    cuts = {0, num_layers}
    for stream in streams:
        # What chooses by data runs the same branches in all layers.
        if stream.choice is not None:
            continue
        sizes = [stream.sub_model.sizes_in(layer) for layer in range(num_layers)]
        for layer in range(1, num_layers):
            if sizes[layer] != sizes[layer - 1]:
                cuts.add(layer)
    return sorted(cuts)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a layer.

    Attributes:
      method: of the block, that runs it.
      axes: of its weights.
    """

    method: str
    axes: frozenset[str]

    def sizes(self, sizes: Sizes) -> tuple[tuple[str, int], ...]:
        """Those of a layer's sizes that it uses."""
        return tuple(sorted((axis, size) for axis, size in sizes.items() if axis in self.axes))

    def varies(self, options: Sequence[Sizes | None]) -> bool:
        """Whether it differs between options, none of which skips the layer."""
        return len({self.sizes(sizes) for sizes in options if sizes is not None}) > 1


def parts_of(plan: Plan) -> list[Part]:
    """The parts of a layer in their order."""
    names = flatten(layer_axes(stack_of(plan.axes)))
    parts = []
    for method, modules in plan.family.modules[BLOCKS].parts.items():
        axes: set[str] = set()
        for path, weight_axes in names.items():
            # A path in a layer starts with the submodule that has the weight.
            module, _, _ = path.partition("/")
            if module in modules:
                axes.update(weight_axes)
        parts.append(Part(method, frozenset(axes)))
    return parts
