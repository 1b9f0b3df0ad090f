"""A sub-model's part of its TA's optimiser state, as the state of a plain run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.checkpoints import read_meta, stored_arrays
from matta_jax.elastic._plain import plain_config, regranulate, regranulated
from matta_jax.elastic._source import Source, load_opt_state
from matta_jax.errors import UserError
from matta_jax.models import abstract_params, architecture_of, logical_axes
from matta_jax.nesting import SubModel, Tree, flatten, narrow_array, nest_of, sizes_of, slice_model
from matta_jax.optim import (
    ShampooState,
    find_shampoo,
    make_optimizer,
    matrix_views,
    shampoo_settings,
    slice_shampoo,
    weights_of,
)


def slice_opt_state(source: Source, sub_models: Sequence[SubModel]) -> list[Any]:
    """Reads the optimiser state of sub-models, each in the form of a plain run of its own.

    Moments are sliced as their weights are, and read as sparely. Shampoo goes along by whole blocks; its state is read
    whole.

    Raises:
      UserError: a sub-model that cannot be trained on, or an optimiser whose state cannot be cut.
    """
    config = source.config
    shampoo = find_shampoo(load_opt_state(source)) if config.optimizer.name == "shampoo" else None
    return [_slice_one(source, sub_model, shampoo) for sub_model in sub_models]


def _slice_one(source: Source, sub_model: SubModel, shampoo: ShampooState | None) -> Any:
    config = plain_config(source.config, source.architecture_of(sub_model))
    nest = nest_of(config)
    architecture = architecture_of(config.model, nest, nest.ta)
    axes, params = logical_axes(architecture), abstract_params(architecture)
    optimizer = make_optimizer(
        config.optimizer, num_steps=config.train.num_steps, axes=axes, shampoo=config.shampoo, nest=nest
    )
    abstract = jax.eval_shape(optimizer.init, params)
    path = source.directory / str(source.step)
    is_shampoo = lambda node: isinstance(node, ShampooState)
    nodes, _ = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=is_shampoo)
    leaves = {jax.tree_util.keystr(key, simple=True, separator="/") for key, node in nodes if not is_shampoo(node)}
    stored = stored_arrays(path, "opt_state", read_meta(path), mend="use another step of the run", leaves=leaves)
    owners, names = weights_of(abstract, params), flatten(axes)
    sizes = sizes_of(sub_model, sub_model.d_ff[0]) | {"layers": sub_model.layers}
    granules = {"heads": architecture.head_granule, "d_ff": architecture.d_ff_granule}

    def take(key_path: Any, leaf: Any) -> Any:
        if is_shampoo(leaf):
            assert shampoo is not None

            def narrow(tree: Tree) -> Tree:
                return regranulate(slice_model(tree, source.axes, sub_model), axes, architecture)

            return _slice_shampoo(source, shampoo, config, axes, nest, narrow)
        own = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if own in owners and own in stored:
            part = narrow_array(stored[own], names[owners[own]], sizes)
            return jnp.asarray(regranulated(part, names[owners[own]], granules))
        if own in stored and stored[own].shape == leaf.shape:
            return jnp.asarray(stored[own].whole())
        raise UserError(
            f"with_optimizer: the state of optimizer.name={config.optimizer.name!r} cannot be cut at {own!r}; "
            "extract without it"
        )

    return jax.tree_util.tree_map_with_path(take, abstract, is_leaf=is_shampoo)


def _slice_shampoo(source: Source, state: ShampooState, config: Any, axes: Tree, nest: Any, narrow: Any) -> Any:
    try:
        return slice_shampoo(
            state,
            settings=shampoo_settings(config.shampoo),
            params=source.abstract,
            views=matrix_views(source.axes, source.nest),
            sub_views=matrix_views(axes, nest),
            narrow=narrow,
        )
    except ValueError as error:
        raise UserError(
            f"with_optimizer: {error}; shampoo.block_size={config.shampoo.block_size} must divide the nest's granules"
        ) from None
