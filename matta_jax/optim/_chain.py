"""The Optax chain of a run: clip, update rule, decoupled weight decay, learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from matta_jax.config import OptimizerConfig
from matta_jax.nesting import Names, Tree, flatten, is_decayed, matrix_view


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine down to `final_fraction` of it, or a constant."""
    peak = config.learning_rate
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, num_steps - config.warmup_steps, alpha=config.final_fraction)
    else:
        after = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, config.warmup_steps), after], boundaries=[config.warmup_steps]
    )


def make_optimizer(config: OptimizerConfig, *, num_steps: int, axes: Tree) -> optax.GradientTransformation:
    """Builds the chain of `config` for weights with these axis names.

    Decay applies to matrices and tables; muon orthogonalises and decays matrices (in the view that their axes give) and
    updates all else by Adam, undecayed.
    """
    schedule = make_schedule(config, num_steps)
    decayed = _map_names(is_decayed, axes)
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    if config.name == "muon":
        # contrib.muon brings its own decay and learning rate. A consistent RMS lets AdamW's learning rates carry over.
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
        "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
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


def map_state(function: Callable[[Any, str | None], Any], opt_state: Any, params: Tree) -> Any:
    """Maps `function(leaf, path)` over an optimiser state.

    `path` is that of the weight whose moment the leaf is, known by the end of the leaf's path and by an equal shape;
    None for all other leaves, such as counters and factored moments.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}

    def visit(key_path: Any, leaf: Any) -> Any:
        parts = jax.tree_util.keystr(key_path, simple=True, separator="/").split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return function(leaf, next((end for end in ends if shapes.get(end) == leaf.shape), None))

    return jax.tree_util.tree_map_with_path(visit, opt_state)
