"""The certificate: an extracted model computes what its slice of the TA computes in place.

Layer by layer, so that no more than one layer of the TA's size exists at a time: the weights read
back from the extracted files run as a plain model; the weights taken from the TA run in place,
inside arrays of the TA's shape that hold NaN wherever the sub-model has no business. Both get the
same input, and must give the same bits, from the embedding to the logits over the ids of the batch.
(The rest of the table is equal by its fingerprint.)

On the CPU, whatever else there is: a GPU's kernels are chosen by what they are fused with, so that
the same weights give other last bits there.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from immutabledict import immutabledict

from matta_jax.checkpoints import StoredArray
from matta_jax.errors import UserError
from matta_jax.models import Architecture, Inputs, Modules, Plan, bind, bind_block, logits
from matta_jax.models.layers import Context
from matta_jax.nesting import (
    BLOCKS,
    Names,
    Size,
    Sizes,
    SubModel,
    flatten,
    narrow_array,
    narrow_names,
    parent_path,
    place_array,
    sizes_of,
    unflatten,
)

BACKEND = "cpu"
BATCH = 2
LENGTH = 64
# Fixed: a certificate that is made again is the same.
_SEED = 0


def prove(
    plan: Plan,
    params: Any,
    written: Mapping[str, StoredArray],
    sub_model: SubModel,
) -> tuple[float, tuple[int, int]]:
    """Compares a sub-model in place with the model that was written.

    Args:
      plan: of the run.
      params: the sub-model's weights, as read from the TA.
      written: the extracted model's weights, on disk.
      sub_model: which it is.

    Returns:
      The largest |difference| between activations; and the batch's shape (B, T).

    Raises:
      UserError: JAX was told to leave out the CPU.
    """
    try:
        host = jax.local_devices(backend=BACKEND)[0]
    except RuntimeError as error:
        platforms = jax.config.values["jax_platforms"]
        raise UserError(
            f"JAX_PLATFORMS={platforms!r} leaves out the CPU, on which extracted models are "
            f"proved; add it: JAX_PLATFORMS={platforms},{BACKEND}"
        ) from error
    with jax.default_device(host):
        return _prove(plan, params, written, sub_model)


def _prove(
    plan: Plan,
    params: Any,
    written: Mapping[str, StoredArray],
    sub_model: SubModel,
) -> tuple[float, tuple[int, int]]:
    length = min(LENGTH, plan.model.max_len)
    proof = _Proof(plan, flatten(params), written, sub_model)
    inputs = proof.number_entries(plan.schema.example(BATCH, length, _SEED))

    pair = proof.outside_layers(plan.family.entries)
    x_ND, context = proof.compare(_enter, pair, inputs)

    # Both ways go on from what the plain model gives: no difference can cancel a later one.
    for i, run in enumerate(sub_model.runs):
        for j in range(len(run.layers)):
            pair = proof.layer(i, j)
            x_ND = proof.compare_layer(run.layers[j], pair, x_ND, context)

    pair = proof.outside_layers(plan.family.exits)
    output = proof.compare(_leave, pair, x_ND, context, sub_model.sizes)
    table_path = plan.architecture.table_path
    if table_path is not None:
        proof.compare_logits(table_path, output)
    return proof.worst, (BATCH, length)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How weights are cut out of arrays of the TA's shape; hashable.

    Attributes:
      names: axis names of each weight, by path.
      sizes: what is kept of each axis.
    """

    names: Mapping[str, Names]
    sizes: Mapping[str, Size]

    def apply(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Cuts the weights."""
        parts = {}
        for path, weight in weights.items():
            parts[path] = narrow_array(weight, self.names[path], self.sizes)
        return parts


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The weights of some modules, twice.

    Attributes:
      plain: as written, by path.
      in_place: as read from the TA, in arrays of its shape.
      cut: how these are cut.
    """

    plain: dict[str, np.ndarray]
    in_place: dict[str, np.ndarray]
    cut: _Cut


class _Proof:
    """A proof on its way; `worst` is the largest difference so far."""

    def __init__(
        self,
        plan: Plan,
        ta_part: Mapping[str, np.ndarray],
        written: Mapping[str, StoredArray],
        sub_model: SubModel,
    ):
        self._plan = plan
        self._ta_part = ta_part
        self._written = written
        self._sub_model = sub_model
        self._shapes = flatten(plan.abstract)
        self._names = flatten(plan.axes)
        # The rows of tables that the batch chooses, by their axis.
        self._entries: dict[str, np.ndarray] = {}
        # A table is read once, where it is the head too.
        self._rows_read: dict[str, np.ndarray] = {}
        self.worst = 0.0

    def number_entries(self, inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Numbers anew the rows of tables that a batch chooses, and remembers them: no more than
        these few rows of a large vocabulary are compared.
        """
        numbered = {}
        for name, declared in self._plan.schema.inputs.items():
            values = inputs[name]
            if declared.entries is not None:
                ids, numbers = np.unique(values, return_inverse=True)
                self._entries[declared.entries] = ids
                # Versions of numpy differ in whether the numbers are flat.
                values = numbers.reshape(values.shape).astype(np.int32)
            numbered[name] = jnp.asarray(values)
        return numbered

    def outside_layers(self, modules: Collection[str]) -> _Pair:
        """The weights of modules beside the layers."""
        names = {}
        for path, weight_names in self._names.items():
            module, _, _ = path.partition("/")
            if module in modules:
                names[path] = weight_names
        sizes = sizes_of(self._sub_model)
        cut = _Cut(immutabledict(names), immutabledict(sizes))

        plain = {}
        in_place = {}
        for path in names:
            plain[path] = self._written_rows(path)
            in_place[path] = self._in_ta_shape(path, self._ta_rows(path), cut, path)
        return _Pair(plain, in_place, cut)

    def layer(self, run: int, index: int) -> _Pair:
        """The weights of a layer, which is one of a run of layers of equal sizes."""
        prefix = f"{BLOCKS}/{run}/"
        paths = {}
        parents = {}
        names = {}
        for path in self._ta_part:
            if not path.startswith(prefix):
                continue
            # A block's weights have their paths within it, and the names of a stack but `layers`.
            bare = path.removeprefix(prefix)
            paths[bare] = path
            parents[bare], _ = parent_path(path)
            names[bare] = self._names[parents[bare]][1:]
        sizes = sizes_of(self._sub_model, self._sub_model.runs[run].sizes)
        cut = _Cut(immutabledict(names), immutabledict(sizes))

        # In float32, which holds every number of the narrower types that may have been written.
        plain = {}
        in_place = {}
        for bare, path in paths.items():
            plain[bare] = np.asarray(self._written[path].entry(index)[0], np.float32)
            part = np.asarray(self._ta_part[path][index], np.float32)
            in_place[bare] = self._in_ta_shape(bare, part, cut, parents[bare])
        return _Pair(plain, in_place, cut)

    def compare(self, function: Any, pair: _Pair, *operands: Any) -> Any:
        """Runs modules both ways, on the same operands; returns what the plain ones do."""
        plain = function(self._plan, None, pair.plain, *operands)
        in_place = function(self._plan, pair.cut, pair.in_place, *operands)
        # The first leaf is the residual stream, also where a context comes with it.
        self._note(jax.tree.leaves(plain)[0], jax.tree.leaves(in_place)[0])
        return plain

    def compare_layer(self, layer: int, pair: _Pair, x_ND: jax.Array, context: Context) -> Any:
        """Runs a layer of the TA both ways: with the index that it has in each model."""
        position = self._sub_model.layers.index(layer)
        extracted = self._plan.architecture_of(self._sub_model)
        plain = _run_block(extracted, None, pair.plain, x_ND, context.at(position))
        in_place = _run_block(
            self._plan.architecture, pair.cut, pair.in_place, x_ND, context.at(layer)
        )
        self._note(plain, in_place)
        return plain

    def compare_logits(self, table: str, hidden_ND: jax.Array) -> None:
        """Compares the logits over the ids of the batch."""
        plain = _logits(hidden_ND, self._written_rows(table))
        in_place = _logits(hidden_ND, self._ta_rows(table))
        self._note(plain, in_place)

    def _note(self, a: jax.Array, b: jax.Array) -> None:
        difference = np.abs(np.asarray(a) - np.asarray(b))
        # Not a number: a weight was read that is not the sub-model's. No maximum may pass over it.
        largest = np.max(np.where(np.isnan(difference), np.inf, difference))
        self.worst = max(self.worst, float(largest))

    def _written_rows(self, path: str) -> np.ndarray:
        if path not in self._rows_read:
            weight = self._written[path].whole()
            self._rows_read[path] = self._rows(path, weight)
        return self._rows_read[path]

    def _ta_rows(self, path: str) -> np.ndarray:
        return self._rows(path, np.asarray(self._ta_part[path]))

    def _rows(self, path: str, weight: np.ndarray) -> np.ndarray:
        """A weight of the sub-model, of whose tables the rows that the batch chooses are enough."""
        names = narrow_names(self._names[path], sizes_of(self._sub_model))
        for axis, ids in self._entries.items():
            if axis in names:
                weight = np.take(weight, ids, axis=names.index(axis))
        return weight.astype(np.float32)

    def _in_ta_shape(
        self,
        name: str,
        part: np.ndarray,
        cut: _Cut,
        parent: str,
    ) -> np.ndarray:
        """A part at its place in an array of the TA's shape, with NaN around it."""
        names = cut.names[name]
        ta_shape = self._shapes[parent].shape
        # Of a stack one layer.
        shape = list(ta_shape[len(ta_shape) - len(names) :])
        # Of a table as many rows as the batch chooses.
        for axis, ids in self._entries.items():
            if axis in names:
                shape[names.index(axis)] = len(ids)
        target = np.full(shape, np.nan, np.float32)
        place_array(part, target, names, cut.sizes)
        return target


_logits = jax.jit(logits)


def _cut_tree(cut: _Cut | None, weights: dict[str, jax.Array]) -> Any:
    return unflatten(weights if cut is None else cut.apply(weights))


def _modules(plan: Plan, cut: _Cut | None, weights: dict[str, jax.Array]) -> Modules:
    return bind(plan.family, plan.architecture.options, _cut_tree(cut, weights))


# Plan and cut are hashed: layers of equal sizes are compiled once. The cut is made inside, as in a
# step of training.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _enter(
    plan: Plan,
    cut: _Cut | None,
    weights: Any,
    inputs: Inputs,
) -> Any:
    modules = _modules(plan, cut, weights)
    return plan.family.enter(modules, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_block(
    architecture: Architecture,
    cut: _Cut | None,
    weights: Any,
    x_ND: jax.Array,
    context: Context,
) -> jax.Array:
    block = bind_block(architecture.family, architecture.options, _cut_tree(cut, weights))
    return block(x_ND, context)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _leave(
    plan: Plan,
    cut: _Cut | None,
    weights: Any,
    x_ND: jax.Array,
    context: Any,
    sizes: Sizes,
) -> Any:
    modules = _modules(plan, cut, weights)
    return plan.family.leave(modules, x_ND, context, sizes)
