"""A plain model of an architecture, of whatever family: its weights, their axes, and its pass.

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model, V vocab.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from immutabledict import immutabledict

from matta_jax.models._architecture import Architecture, read_entries
from matta_jax.models.families import Family, Inputs, Modules, family_of
from matta_jax.models.layers import Build
from matta_jax.nesting import (
    BLOCKS,
    LAYERS,
    MEMBERS,
    Counts,
    Names,
    Nest,
    Tree,
    count_weights,
    fan_in_scales,
    flatten,
    join_granules,
    layer_axes,
    narrow,
    narrow_modules,
    outside_blocks,
    sizes_of,
    unflatten,
    unit_sizes,
)
from matta_jax.sharding import ONE_DEVICE, Placement


class PlainModel(nnx.Module):
    """The modules of a plain model, one stack of layers for each run of equal sizes."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        family = architecture.family
        sizes = architecture.axis_sizes()
        build = Build(sizes, architecture.num_layers, rngs, architecture.options)
        # In the family's order: all modules draw from one stream of random numbers.
        for name, module in family.modules.items():
            if name == BLOCKS:
                self.blocks = _stacks(architecture, rngs)
            elif family.has(name, sizes, architecture.options):
                setattr(self, name, module(build))


def _stacks(architecture: Architecture, rngs: nnx.Rngs) -> nnx.Dict:
    stacks: nnx.Dict = nnx.Dict()
    for i, run in enumerate(architecture.sub_model.runs):
        sizes = architecture.axis_sizes(run.sizes)
        keys = jax.random.split(rngs.params(), len(run.layers))
        make = functools.partial(_block, architecture, sizes)
        # Each layer draws by a key of its own; the first axis of what comes out is `layers`.
        stacks[str(i)] = nnx.vmap(make)(keys)
    return stacks


def _block(architecture: Architecture, sizes: Mapping[str, int], key: jax.Array) -> nnx.Module:
    rngs = nnx.Rngs(key)
    build = Build(sizes, architecture.num_layers, rngs, architecture.options)
    return architecture.family.modules[BLOCKS](build)


@functools.lru_cache(maxsize=64)
def _abstract(architecture: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
    # Traced and not run: no array of the model's size comes to be.
    return nnx.split(nnx.eval_shape(lambda: PlainModel(architecture, nnx.Rngs(0))))


def abstract_params(architecture: Architecture) -> Tree:
    """The weights of a plain model as nested dicts of `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(_abstract(architecture)[1])


def logical_axes(architecture: Architecture) -> Tree:
    """The axis names of each weight, as nested dicts of tuples, read from the modules' metadata."""
    axes: dict[str, Names] = {}
    for path, variable in nnx.to_flat_state(_abstract(architecture)[1]):
        # A block names the axes of one layer, also where a vmap has stacked it.
        stack = (LAYERS,) if path[0] == BLOCKS else ()
        axes["/".join(map(str, path))] = stack + variable.get_metadata()["axes"]
    return unflatten(axes)


def silent_values(architecture: Architecture) -> dict[str, float]:
    """The value of each weight, by path, with which an entry of it adds nothing: 0 but for scales
    of norms that have an offset.
    """
    values = {}
    for path, variable in nnx.to_flat_state(_abstract(architecture)[1]):
        values["/".join(map(str, path))] = variable.get_metadata().get("silent", 0.0)
    return values


def init_params(architecture: Architecture, key: jax.Array, nest: Nest | None = None) -> Tree:
    """Returns fresh weights. With a nest, each part has the scale of the smallest sub-model that it
    belongs to.
    """
    params = nnx.to_pure_dict(nnx.state(PlainModel(architecture, nnx.Rngs(key))))
    if nest is None:
        return params

    # Flat, because a factor follows from a weight and its names, which are leaves of two trees.
    axes = flatten(logical_axes(architecture))
    scaled = {}
    for path, weight in flatten(params).items():
        factor = fan_in_scales(weight.shape, axes[path], nest)
        scaled[path] = weight if factor is None else weight * factor
    return unflatten(scaled)


@functools.lru_cache(maxsize=64)
def _graphdef(family_name: str, options: immutabledict[str, Any], module: str) -> nnx.GraphDef:
    """The structure of a module, which is the same at every size."""
    # Layers run with the weights of one member, from which the axis of members was dropped.
    sizes = unit_sizes()
    del sizes[MEMBERS]

    def make() -> nnx.Module:
        build = Build(sizes, depth=1, rngs=nnx.Rngs(0), options=options)
        return family_of(family_name).modules[module](build)

    return nnx.split(nnx.eval_shape(make))[0]


def bind(family: Family, options: Mapping[str, Any], weights: Tree) -> Modules:
    """The modules of a family with these weights, of whatever size, by name: of those beside the
    layers, or `blocks` with the weights of one layer.
    """
    known_options = immutabledict(options)
    modules = {}
    for name, part in weights.items():
        # Merging checks no shapes: a structure of unit sizes takes a slice of any size.
        graphdef = _graphdef(family.name, known_options, name)
        modules[name] = nnx.merge(graphdef, part)
    return modules


def bind_block(family: Family, options: Mapping[str, Any], weights: Tree) -> Any:
    """A layer with these weights."""
    return bind(family, options, {BLOCKS: weights})[BLOCKS]


def apply(
    architecture: Architecture,
    params: Tree,
    inputs: Inputs,
    *,
    dtype: str = "float32",
    placement: Placement = ONE_DEVICE,
) -> jax.Array:
    """Runs the plain model of `params`, a layer cast and gathered when it runs. Not made to be
    differentiated: it keeps what `joint_apply` would compute again.

    Args:
      architecture: of the model.
      params: its weights.
      inputs: by name.
      dtype: compute type.
      placement: where weights lie.

    Returns:
      The normed hidden states [N, D] in the compute type; of a family without a table the logits
      [B, classes], or [B].
    """
    return apply_pass(architecture, params, inputs, dtype=dtype, placement=placement)[0]


def apply_pass(
    architecture: Architecture,
    params: Tree,
    inputs: Inputs,
    *,
    earlier_ND: jax.Array | None = None,
    dtype: str = "float32",
    placement: Placement = ONE_DEVICE,
) -> tuple[jax.Array, jax.Array]:
    """As `apply`, of a model whose earlier pass may have been run by a smaller model.

    Args:
      architecture: of the model.
      params: its weights.
      inputs: by name.
      earlier_ND: the residual stream that the earlier pass ended with; None: the pass is run here,
        where the model has one.
      dtype, placement: as of `apply`.

    Returns:
      What `apply` does, and the residual stream [N, D] that the model's own pass ends with.
    """
    family = architecture.family
    options = architecture.options
    axes = logical_axes(architecture)

    # Cast before it is gathered: fewer bytes travel between devices.
    def gather(weight: jax.Array, names: Names) -> jax.Array:
        return placement.gather(weight.astype(dtype), names)

    def ready(weights: Tree, names: Tree) -> Tree:
        return jax.tree.map(gather, weights, names)

    def ready_modules(weights: Tree) -> Modules:
        outer = {}
        for name, part in outside_blocks(weights).items():
            outer[name] = ready(part, axes[name])
        return bind(family, options, outer)

    modules = ready_modules(params)
    x_ND, context = family.enter(modules, inputs)
    context = context.on(placement)
    x_ND = x_ND.astype(dtype)
    earlier = earlier_model(architecture, params)
    if earlier is not None:
        if earlier_ND is None:
            _, earlier_ND = apply_pass(*earlier, inputs, dtype=dtype, placement=placement)
        x_ND = family.join(modules, x_ND, ready_modules(earlier[1]), earlier_ND)

    # A scan for each run: within one, all layers have the same sizes.
    for i, run in enumerate(architecture.sub_model.runs):
        names = layer_axes(axes[BLOCKS][str(i)])

        # `names` as a default is that of this run; a closure would read the loop's last one.
        def body(
            x_ND: jax.Array, layer: tuple[Tree, jax.Array], names: Tree = names
        ) -> tuple[jax.Array, None]:
            weights, index = layer
            weights = ready(weights, names)
            if placement.joins:
                weights = join_granules(weights, names)
            return bind_block(family, options, weights)(x_ND, context.at(index)), None

        x_ND, _ = jax.lax.scan(body, x_ND, (params[BLOCKS][str(i)], jnp.array(run.layers)))
    return family.leave(modules, x_ND, context, architecture.sub_model.sizes), x_ND


def earlier_model(architecture: Architecture, params: Tree) -> tuple[Architecture, Tree] | None:
    """The pass that a plain model runs before its own, as a plain model with its part of the
    weights; None: it has none.
    """
    earlier = architecture.earlier
    if earlier is None:
        return None
    axes = logical_axes(architecture)
    part = narrow_modules(outside_blocks(params), axes, sizes_of(earlier))
    stacks = []
    for i, run in enumerate(architecture.sub_model.runs):
        sizes = sizes_of(earlier, earlier.sizes_in(run.layers[0]))
        stacks.append(narrow(params[BLOCKS][str(i)], axes[BLOCKS][str(i)], sizes))

    # Neighbouring runs may be of one size there.
    part[BLOCKS] = {}
    for i, run in enumerate(earlier.runs):
        together = [
            stack
            for stack, each in zip(stacks, architecture.sub_model.runs, strict=True)
            if each.layers[0] in run.layers
        ]
        part[BLOCKS][str(i)] = jax.tree.map(lambda *parts: jnp.concatenate(parts), *together)
    return dataclasses.replace(architecture, sub_model=earlier), part


def table_of(architecture: Architecture, params: Tree) -> jax.Array | None:
    """The table [V, D] that hidden states are compared with; None where a family has none.

    A sub-model in place uses its first columns.
    """
    path = architecture.table_path
    return None if path is None else flatten(params)[path]


def logits(hidden_ND: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Returns float32 logits [N, V] of hidden states under a table, of which the first D columns
    count.
    """
    d_model = hidden_ND.shape[-1]
    table = table_VD[:, :d_model].astype(hidden_ND.dtype)
    # Sums in float32: losses take differences of logits, which a narrower type would round away.
    return jnp.einsum("nd,vd->nv", hidden_ND, table, preferred_element_type=jnp.float32)


def count_model(architecture: Architecture, seq_len: int) -> Counts:
    """Counts a plain model in float32, with all its passes.

    Args:
      architecture: of the model.
      seq_len: tokens of the sequence that attention spans.
    """
    counts = _count_pass(architecture, seq_len)
    flops = counts.flops_per_token + earlier_flops(architecture, seq_len)
    return dataclasses.replace(counts, flops_per_token=flops)


def earlier_flops(architecture: Architecture, seq_len: int) -> int:
    """FLOPs of a token in the passes that a plain model runs before its own; 0 of most."""
    earlier = architecture.earlier
    if earlier is None:
        return 0
    earlier_architecture = dataclasses.replace(architecture, sub_model=earlier)
    counts = count_model(earlier_architecture, seq_len)
    # It is not left, and gives no logits.
    weights, axes = abstract_params(earlier_architecture), logical_axes(earlier_architecture)
    exits = {name: weights[name] for name in architecture.family.exits if name in weights}
    exit_flops = count_weights(exits, {name: axes[name] for name in exits}).flops_per_token
    return counts.flops_per_token - exit_flops


def _count_pass(architecture: Architecture, seq_len: int) -> Counts:
    family = architecture.family
    attention = family.attention_flops(architecture.sub_model, architecture.fixed, seq_len)
    return count_weights(
        abstract_params(architecture),
        logical_axes(architecture),
        heads=[path for path in [architecture.table_path] if path is not None],
        attention=attention,
        read=read_entries(architecture.earlier),
    )
