"""A sub-model's part of its TA's optimiser state, as the state of a plain run."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.checkpoints import Source, StoredArray, load_opt_state, read_meta, stored_arrays
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import Plan, plan_of
from matta_jax.nesting import (
    LAYERS,
    SubModel,
    Tree,
    flatten,
    merge_granules,
    narrow_array,
    path_name,
    regranulate,
    sizes_of,
    split_granules,
)
from matta_jax.optim import (
    ShampooState,
    find_shampoo,
    matrix_views,
    optimizer_of,
    slice_shampoo,
    weights_of,
)
from matta_jax.packages import plain_config


def slice_opt_state(source: Source, sub_models: Sequence[SubModel]) -> list[Any]:
    """Reads the optimiser state of sub-models, each in the form of a plain run of its own.

    Moments are sliced as their weights are, and read as sparely; Adafactor's are factored again.
    Shampoo goes along by whole blocks; its state is read whole.

    Raises:
      UserError: a sub-model that cannot be trained on, or an optimiser whose state cannot be cut.
    """
    shampoo = None
    if source.config.optimizer.name == "shampoo":
        # Once for all sub-models, as no part of it can be read alone.
        shampoo = find_shampoo(load_opt_state(source))
    return [_Slicer(source, sub_model).slice(shampoo) for sub_model in sub_models]


def _is_shampoo(node: Any) -> bool:
    return isinstance(node, ShampooState)


class _Slicer:
    """Takes the state of one sub-model out of its TA's."""

    def __init__(self, source: Source, sub_model: SubModel):
        self._source = source
        self._sub_model = sub_model
        self._config: Config = plain_config(source.config, source.architecture_of(sub_model))
        self._plan: Plan = plan_of(self._config)
        # One stack for all layers: a model that can be trained on has them of one size.
        self._sizes = sizes_of(sub_model) | {LAYERS: sub_model.layers}
        self._ta_names = flatten(source.axes)
        self._names = flatten(self._plan.axes)

    def slice(self, shampoo: ShampooState | None) -> Any:
        """Returns the state; `shampoo` is the TA's, where it has one."""
        plan = self._plan
        optimizer = optimizer_of(self._config, plan)
        # The state that a plain run would start with, whose leaves are then filled one by one.
        abstract = jax.eval_shape(optimizer.init, plan.abstract)
        stored = self._stored(abstract)
        owners = weights_of(abstract, plan.abstract)

        # Shampoo's state is cut by blocks, all of it at once; every other leaf by itself.
        def take(key_path: Any, leaf: Any) -> Any:
            if _is_shampoo(leaf):
                assert shampoo is not None
                return self._slice_shampoo(shampoo)
            return self._take(path_name(key_path), leaf, stored, owners)

        return jax.tree_util.tree_map_with_path(take, abstract, is_leaf=_is_shampoo)

    def _stored(self, abstract: Any) -> dict[str, StoredArray]:
        """The TA's state on disk, without Shampoo's."""
        path = self._source.directory / str(self._source.step)
        # The plain run's tree has the paths of the TA's, as both have one stack of layers.
        nodes, _ = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=_is_shampoo)
        leaves = {path_name(key) for key, node in nodes if not _is_shampoo(node)}
        mend = "use another step of the run"
        return stored_arrays(path, "opt_state", read_meta(path), mend=mend, leaves=leaves)

    def _take(
        self,
        path: str,
        leaf: Any,
        stored: Mapping[str, StoredArray],
        owners: Mapping[str, str],
    ) -> jax.Array:
        """The part of a leaf of the state: a moment, a factor of one, or a number."""
        # A moment has the shape of its weight, and is cut as that is.
        if path in owners and path in stored:
            return jnp.asarray(self._narrow(stored[path], owners[path]))

        factor = _Factor.of(path, self._names)
        if factor is not None:
            ta_shape = flatten(self._source.abstract)[factor.weight].shape
            moment = self._narrow(factor.whole(stored, ta_shape), factor.weight)
            return jnp.asarray(factor.reduced(moment)).reshape(leaf.shape)

        # Counts of steps and other numbers that are of no weight.
        if path in stored and stored[path].shape == leaf.shape:
            return jnp.asarray(stored[path].whole())
        raise UserError(
            f"with_optimizer: the state of optimizer.name={self._config.optimizer.name!r} cannot "
            f"be cut at {path!r}; extract without it"
        )

    def _narrow(self, moment: Any, weight: str) -> np.ndarray:
        """A moment of one of the TA's weights, as that of the plain model's."""
        part = narrow_array(moment, self._ta_names[weight], self._sizes)
        names = self._names[weight]
        # A plain run's nest is smaller than the TA's, and its granules may be larger.
        merged = merge_granules(part, names)
        return split_granules(merged, names, self._plan.nest.granules)

    def _slice_shampoo(self, state: ShampooState) -> Any:
        source = self._source
        plan = self._plan

        def narrow(tree: Tree) -> Tree:
            part = source.plan.slice(tree, self._sub_model)
            return regranulate(part, plan.axes, plan.nest.granules)

        try:
            return slice_shampoo(
                state,
                settings=self._config.shampoo,
                params=source.abstract,
                views=matrix_views(source.axes, source.nest),
                sub_views=matrix_views(plan.axes, plan.nest),
                narrow=narrow,
            )
        except ValueError as error:
            raise UserError(f"with_optimizer: {error}") from None


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
            state, separator, weight = path.partition(f"/{kind}/")
            if separator and weight in weights:
                return cls(state, kind, weight)
        return None

    def whole(self, stored: Mapping[str, StoredArray], shape: tuple[int, ...]) -> np.ndarray:
        """The second moment of the TA's weight."""

        def read(kind: str) -> np.ndarray:
            return stored[f"{self.state}/{kind}/{self.weight}"].whole()

        axes = _factored_axes(shape)
        if axes is None:
            return read("v").reshape(shape)

        # Rows are means over the largest axis and columns over the second: each lacks that one.
        second, largest = axes
        row = np.expand_dims(read("v_row"), largest)
        column = np.expand_dims(read("v_col"), second)
        # Of a weight that never had a gradient all means are 0.
        row_mean = np.maximum(row.mean(axis=second, keepdims=True), 1e-30)
        return row / row_mean * column

    def reduced(self, moment: np.ndarray) -> np.ndarray:
        """This leaf, of a moment."""
        axes = _factored_axes(moment.shape)
        # Optax's placeholder: factors where there is a moment, or a moment where there are factors.
        if (axes is None) != (self.kind == "v"):
            return np.zeros(1, np.float32)
        if axes is None:
            return moment

        second, largest = axes
        return moment.mean(axis=largest if self.kind == "v_row" else second)


def _factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The second largest and the largest axis, where the second moment is factored over them
    (optax's rule).
    """
    if len(shape) < 2:
        return None

    order = np.argsort(shape)
    second = int(order[-2])
    largest = int(order[-1])
    # Optax's default of the smallest axis that it factors.
    if shape[second] < 128:
        return None
    return second, largest
