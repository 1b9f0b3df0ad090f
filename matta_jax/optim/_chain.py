"""The Optax chain of a run: clip, update rule, decoupled weight decay, learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.config import Config, OptimizerConfig, ShampooConfig
from matta_jax.models import Plan
from matta_jax.nesting import (
    Names,
    Nest,
    Tree,
    flatten,
    is_decayed,
    is_granulated,
    map_names,
    matrix_view,
    path_name,
    stack_positions,
    table_view,
)
from matta_jax.optim._blocks import MatrixView
from matta_jax.optim._distribution import block_sharding
from matta_jax.optim._muon import orthogonalise_blocks
from matta_jax.optim._shampoo import scale_by_shampoo
from matta_jax.optim._state import BlockState


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak; then a cosine down to `final_fraction` of it, a constant,
    or a constant and a line down to that fraction (`wsd`: warm-up, stable, decay).
    """
    peak = config.learning_rate
    steps_after = num_steps - config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, steps_after, alpha=config.final_fraction)
    elif config.schedule == "wsd":
        decay_steps = round(config.decay_fraction * num_steps)
        after = optax.linear_schedule(
            peak, peak * config.final_fraction, decay_steps, steps_after - decay_steps
        )
    else:
        after = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, config.warmup_steps), after],
        boundaries=[config.warmup_steps],
    )


def optimizer_of(
    config: Config,
    plan: Plan,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Builds the chain of a run, for the weights of its plan; `mesh` as in `make_optimizer`."""
    return make_optimizer(
        config.optimizer,
        num_steps=config.train.num_steps,
        axes=plan.axes,
        shampoo=config.shampoo,
        nest=plan.nest,
        mesh=mesh,
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
    their axes give), the nest's blocks apart, and updates all else by Adam, undecayed. Shampoo's
    momentum is Nesterov's, scaled by 1 - b1, so that AdamW's learning rates carry over; its blocks
    end at the nest's boundaries and are shared by the devices of the mesh.
    """
    schedule = make_schedule(config, num_steps)
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    if config.name == "muon":
        return optax.chain(clip, _muon(config, schedule, axes, nest))

    if config.name == "shampoo":
        preconditioner = scale_by_shampoo(shampoo, views=matrix_views(axes, nest), mesh=mesh)
        momentum = optax.trace(config.b1, nesterov=True)
        rule = optax.chain(preconditioner, momentum, optax.scale(1 - config.b1))
    else:
        rule = _first_order_rule(config)
    return optax.chain(
        clip,
        rule,
        optax.add_decayed_weights(config.weight_decay, mask=map_names(is_decayed, axes)),
        optax.scale_by_learning_rate(schedule),
    )


def _first_order_rule(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2)
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _muon(
    config: OptimizerConfig, schedule: optax.Schedule, axes: Tree, nest: Nest | None
) -> optax.GradientTransformation:
    """Muon for matrices, and for all else Adam without decay; each with the learning rate."""

    def rule_of(names: Names) -> str:
        return "adam" if matrix_view(names) is None else "muon"

    muon = optax.chain(
        optax.trace(config.b1, nesterov=True),
        orthogonalise_blocks(axes, nest),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    adam = optax.nadam(schedule, config.b1, config.b2, config.eps)
    return optax.partition({"muon": muon, "adam": adam}, map_names(rule_of, axes))


def shampoo_advice(config: ShampooConfig, nest: Nest) -> str | None:
    """Returns a line for the user when the nest's widths make blocks odd or small, or None."""
    widths, granule = nest.allowed["d_ff"], nest.granule("d_ff")
    if len(widths) < 2 or granule % config.block_size == 0:
        return None
    return (
        f"shampoo.block_size={config.block_size} does not divide {granule}, the common granule of "
        f"nest.widths={widths}: blocks are cut at every {granule}; widths that are multiples of "
        f"{config.block_size} make fewer and fuller ones"
    )


def matrix_views(axes: Tree, nest: Nest | None = None) -> Tree:
    """Returns a `MatrixView` for each weight with these axis names, or None for norms and biases.

    Inputs are rows and outputs columns; of a table, its entries are rows. Granules are a stack,
    which cuts their axis at every boundary of a nest, and so are layers, members and the parts of
    one projection; other nested axes are cut at the nest's boundaries.
    """

    def view(names: Names) -> MatrixView | None:
        sides = matrix_view(names) or table_view(names)
        if sides is None:
            return None
        stack = stack_positions(names)
        rows = tuple(i for i in sides[0] if i not in stack)
        columns = tuple(i for i in sides[1] if i not in stack)
        return MatrixView(rows, columns, cuts(names, rows), cuts(names, columns))

    def cuts(names: Names, side: tuple[int, ...]) -> tuple[int, ...]:
        if nest is None or len(side) != 1 or is_granulated(names[side[0]], names):
            return ()
        return nest.boundaries(names[side[0]])

    return map_names(view, axes)


def map_state(function: Callable[[Any, str | None], Any], opt_state: Any, params: Tree) -> Any:
    """Maps `function(leaf, path)` over an optimiser state.

    `path` is that of the weight whose moment the leaf is, known by the end of the leaf's path and
    by an equal shape; None for all other leaves, such as counters and factored moments.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}

    def visit(key_path: Any, leaf: Any) -> Any:
        parts = path_name(key_path).split("/")
        # The longest end of the leaf's path that is a weight's.
        for start in range(len(parts)):
            path = "/".join(parts[start:])
            if shapes.get(path) == leaf.shape:
                return function(leaf, path)
        return function(leaf, None)

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
    by_path, replicated = flatten(shardings), NamedSharding(mesh, P())
    placed = map_state(lambda leaf, path: by_path[path] if path else replicated, opt_state, params)

    def place(node: Any, sharding: Any) -> Any:
        if isinstance(node, BlockState):
            return jax.tree.map(lambda leaf: block_sharding(leaf.shape[0], mesh), node)
        return sharding

    return jax.tree.map(place, opt_state, placed, is_leaf=lambda node: isinstance(node, BlockState))
