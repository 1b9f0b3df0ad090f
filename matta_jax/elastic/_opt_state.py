"""A sub-model's part of its TA's optimiser state, as the state of a plain run."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.checkpoints import Source, StoredArray, load_opt_state, read_meta, stored_arrays
from matta_jax.errors import UserError
from matta_jax.models import abstract_params, architecture_of, logical_axes
from matta_jax.nesting import (
    SubModel,
    Tree,
    flatten,
    narrow_array,
    nest_of,
    path_name,
    sizes_of,
    slice_model,
)
from matta_jax.optim import (
    ShampooState,
    find_shampoo,
    make_optimizer,
    matrix_views,
    shampoo_settings,
    slice_shampoo,
    weights_of,
)
from matta_jax.packages import plain_config, regranulate, regranulated


def slice_opt_state(source: Source, sub_models: Sequence[SubModel]) -> list[Any]:
    """Reads the optimiser state of sub-models, each in the form of a plain run of its own.

    Moments are sliced as their weights are, and read as sparely; Adafactor's are factored again.
    Shampoo goes along by whole blocks; its state is read whole.

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
        config.optimizer,
        num_steps=config.train.num_steps,
        axes=axes,
        shampoo=config.shampoo,
        nest=nest,
    )
    abstract = jax.eval_shape(optimizer.init, params)
    path = source.directory / str(source.step)
    is_shampoo = lambda node: isinstance(node, ShampooState)
    nodes, _ = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=is_shampoo)
    leaves = {path_name(key) for key, node in nodes if not is_shampoo(node)}
    stored = stored_arrays(
        path, "opt_state", read_meta(path), mend="use another step of the run", leaves=leaves
    )
    owners, names = weights_of(abstract, params), flatten(axes)
    ta_shapes = flatten(source.abstract)
    sizes = sizes_of(sub_model, sub_model.d_ff[0]) | {"layers": sub_model.layers}
    granules = architecture.granules

    def take(key_path: Any, leaf: Any) -> Any:
        if is_shampoo(leaf):
            assert shampoo is not None

            def narrow(tree: Tree) -> Tree:
                return regranulate(slice_model(tree, source.axes, sub_model), axes, architecture)

            return _slice_shampoo(source, shampoo, config, axes, nest, narrow)
        own = path_name(key_path)
        if own in owners and own in stored:
            part = narrow_array(stored[own], names[owners[own]], sizes)
            return jnp.asarray(regranulated(part, names[owners[own]], granules))
        factor = _Factor.of(own, names)
        if factor is not None:
            moment = factor.whole(stored, ta_shapes[factor.weight].shape)
            part = regranulated(
                narrow_array(moment, names[factor.weight], sizes), names[factor.weight], granules
            )
            return jnp.asarray(factor.reduced(part)).reshape(leaf.shape)
        if own in stored and stored[own].shape == leaf.shape:
            return jnp.asarray(stored[own].whole())
        raise UserError(
            f"with_optimizer: the state of optimizer.name={config.optimizer.name!r} cannot be cut "
            f"at {own!r}; "
            "extract without it"
        )

    return jax.tree_util.tree_map_with_path(take, abstract, is_leaf=is_shampoo)


@dataclasses.dataclass(frozen=True)
class _Factor:
    """A leaf of Adafactor's factored second moment: `v_row`, `v_col` or, where it is not factored,
    `v`.

    The row and column means of a slice are not slices of the whole's: the moment is put together
    (optax's own estimate), sliced, and factored again.
    """

    state: str
    kind: str
    weight: str

    @classmethod
    def of(cls, path: str, weights: Collection[str]) -> "_Factor | None":
        """What a path such as `1/0/v_row/blocks/0/mlp/w_in` names."""
        for kind in ("v_row", "v_col", "v"):
            state, found, weight = path.partition(f"/{kind}/")
            if found and weight in weights:
                return cls(state, kind, weight)
        return None

    def whole(self, stored: Mapping[str, StoredArray], shape: tuple[int, ...]) -> np.ndarray:
        """The second moment of the TA's weight."""
        read = lambda kind: stored[f"{self.state}/{kind}/{self.weight}"].whole()
        axes = _factored_axes(shape)
        if axes is None:
            return read("v").reshape(shape)
        row, column = np.expand_dims(read("v_row"), axes[1]), np.expand_dims(read("v_col"), axes[0])
        return row / np.maximum(row.mean(axis=axes[0], keepdims=True), 1e-30) * column

    def reduced(self, moment: np.ndarray) -> np.ndarray:
        """This leaf, of a moment."""
        axes = _factored_axes(moment.shape)
        if (axes is None) != (self.kind == "v"):
            return np.zeros(1, np.float32)  # Optax's placeholder.
        return (
            moment
            if axes is None
            else moment.mean(axis=axes[1] if self.kind == "v_row" else axes[0])
        )


def _factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The second largest and the largest axis, where the second moment is factored over them
    (optax's rule).
    """
    if len(shape) < 2:
        return None
    order = np.argsort(shape)
    return (int(order[-2]), int(order[-1])) if shape[order[-2]] >= 128 else None


def _slice_shampoo(
    source: Source, state: ShampooState, config: Any, axes: Tree, nest: Any, narrow: Any
) -> Any:
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
            f"with_optimizer: {error}; shampoo.block_size={config.shampoo.block_size} must divide "
            "the nest's granules"
        ) from None
