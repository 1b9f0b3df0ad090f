"""The Optax chain of a run: clip, update rule, decoupled weight decay, learning rate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.config import OptimizerConfig, ShampooConfig
from matta_jax.nesting import (
    Names,
    Nest,
    Tree,
    flatten,
    is_decayed,
    matrix_view,
    path_name,
    table_view,
)
from matta_jax.optim._blocks import MatrixView
from matta_jax.optim._shampoo import BlockState, Shampoo, block_sharding, scale_by_shampoo


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine down to `final_fraction` of it, or a
    constant.
    """
    peak = config.learning_rate
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            peak, num_steps - config.warmup_steps, alpha=config.final_fraction
        )
    else:
        after = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, config.warmup_steps), after],
        boundaries=[config.warmup_steps],
    )


def make_optimizer(
    config: OptimizerConfig,
    *,
    num_steps: int,
    axes: Tree,
    shampoo: ShampooConfig | None = None,
    nest: Nest | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Builds the chain of `config` for weights with these axis names.

    Decay applies to matrices and tables; muon orthogonalises and decays matrices (in the view that
    their axes give) and updates all else by Adam, undecayed. Shampoo's momentum is Nesterov's,
    scaled by 1 - b1, so that AdamW's learning rates carry over; its blocks end at the nest's
    boundaries and are shared by the devices of the mesh.
    """
    schedule = make_schedule(config, num_steps)
    decayed = _map_names(is_decayed, axes)
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    if config.name == "muon":
        # contrib.muon brings its own decay and learning rate. A consistent RMS lets AdamW's
        # learning rates carry over.
        return optax.chain(
            clip,
            optax.contrib.muon(
                schedule,
                beta=config.b1,
                weight_decay=config.weight_decay,
                adam_b1=config.b1,
                adam_b2=config.b2,
                muon_weight_dimension_numbers=_map_names(_muon_view, axes),
                consistent_rms=0.2,
            ),
        )
    rules = {
        "adamw": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
        "lion": lambda: optax.scale_by_lion(config.b1, config.b2),
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
        ),
        "shampoo": lambda: optax.chain(
            scale_by_shampoo(
                shampoo_settings(shampoo or ShampooConfig()),
                views=matrix_views(axes, nest),
                mesh=mesh,
            ),
            optax.trace(config.b1, nesterov=True),
            optax.scale(1 - config.b1),
        ),
    }
    return optax.chain(
        clip,
        rules[config.name](),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule),
    )


def _muon_view(names: Names) -> optax.contrib.MuonDimensionNumbers | None:
    view = matrix_view(names)
    return view and optax.contrib.MuonDimensionNumbers(reduction_axis=view[0], output_axis=view[1])


def _map_names(function: Callable[[Names], Any], axes: Tree) -> Tree:
    return jax.tree.map(function, axes, is_leaf=lambda node: type(node) is tuple)


def shampoo_settings(config: ShampooConfig) -> Shampoo:
    """The settings of `scale_by_shampoo` that a config means."""
    return Shampoo(**dataclasses.asdict(config))


def shampoo_advice(config: ShampooConfig, nest: Nest) -> str | None:
    """Returns a line for the user when the nest's widths make blocks odd or small, or None."""
    granule = nest.d_ff_granule
    if len(nest.widths) < 2 or granule % config.block_size == 0:
        return None
    return (
        f"shampoo.block_size={config.block_size} does not divide {granule}, the common granule of "
        "nest.widths="
        f"{nest.widths}: blocks are cut at every {granule}; widths that are multiples of "
        f"{config.block_size} make "
        "fewer and fuller ones"
    )


def matrix_views(axes: Tree, nest: Nest | None = None) -> Tree:
    """Returns a `MatrixView` for each weight with these axis names, or None for norms and biases.

    Inputs are rows and outputs columns; of a table, its entries are rows. Granules are a stack,
    which cuts their axis at every boundary of a nest, and so are query, key and value; other nested
    axes are cut at the nest's boundaries.
    """

    def view(names: Names) -> MatrixView | None:
        found = matrix_view(names) or table_view(names)
        if found is None:
            return None
        rows, columns = (tuple(i for i in side if not is_stack(names[i])) for side in found)
        return MatrixView(rows, columns, cuts(names, rows), cuts(names, columns))

    def is_stack(name: str) -> bool:
        return name.endswith("_granules") or name == "qkv"

    def cuts(names: Names, side: tuple[int, ...]) -> tuple[int, ...]:
        if nest is None or len(side) != 1 or f"{names[side[0]]}_granules" in names:
            return ()
        return tuple(nest.boundaries(names[side[0]]))

    return _map_names(view, axes)


def map_state(function: Callable[[Any, str | None], Any], opt_state: Any, params: Tree) -> Any:
    """Maps `function(leaf, path)` over an optimiser state.

    `path` is that of the weight whose moment the leaf is, known by the end of the leaf's path and
    by an equal shape; None for all other leaves, such as counters and factored moments.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}

    def visit(key_path: Any, leaf: Any) -> Any:
        parts = path_name(key_path).split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return function(leaf, next((end for end in ends if shapes.get(end) == leaf.shape), None))

    return jax.tree_util.tree_map_with_path(visit, opt_state)


def weights_of(opt_state: Any, params: Tree) -> dict[str, str]:
    """The path of each moment in an optimiser state, and that of the weight whose moment it is."""
    owners = map_state(lambda _, path: path or "", opt_state, params)
    leaves, _ = jax.tree_util.tree_flatten_with_path(owners)
    paths = {path_name(path): owner for path, owner in leaves}
    return {path: owner for path, owner in paths.items() if owner}


def state_shardings(opt_state: Any, params: Tree, shardings: Tree, mesh: Mesh) -> Any:
    """Returns how an optimiser state lies on the mesh: moments as their weights, Shampoo's blocks
    over all devices.
    """
    by_path, whole = flatten(shardings), NamedSharding(mesh, P())
    placed = map_state(lambda leaf, path: by_path[path] if path else whole, opt_state, params)

    def place(own: Any, found: Any) -> Any:
        if isinstance(own, BlockState):
            return jax.tree.map(lambda leaf: block_sharding(leaf.shape[0], mesh), own)
        return found

    return jax.tree.map(place, opt_state, placed, is_leaf=lambda node: isinstance(node, BlockState))
