"""The certificate: an extracted model computes what its slice of the TA computes in place.

Layer by layer, so that no more than one layer of the TA's size exists at a time: the weights read
back from the extracted files run as a plain model; the weights taken from the TA run in place,
inside arrays of the TA's shape that hold NaN wherever the sub-model has no business. Both get the
same input, and must give the same bits, from the embedding to the logits over the ids of the batch.
(The rest of the table is equal by its fingerprint.)

On the CPU, whatever else there is: a GPU's kernels are chosen by what they are fused with, so that
the same weights give other last bits there.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from immutabledict import immutabledict

from matta_jax.checkpoints import StoredArray
from matta_jax.elastic._both_ways import Cut, Pair, enter, join, leave, run_block, run_logits
from matta_jax.errors import UserError
from matta_jax.models import Inputs, Plan
from matta_jax.models.layers import Context
from matta_jax.nesting import (
    BLOCKS,
    Names,
    Size,
    SubModel,
    flatten,
    narrow_names,
    parent_path,
    place_array,
    sizes_of,
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

    ended: tuple[SubModel, jax.Array] | None = None
    for model_pass in plan.passes(sub_model):
        x_ND, context = proof.run_pass(model_pass, inputs, ended)
        ended = (model_pass, x_ND)

    pair = proof.outside_layers(plan.family.exits, sub_model)
    output = proof.compare(leave, pair, x_ND, context, sub_model.sizes)
    table_path = plan.architecture.table_path
    if table_path is not None:
        proof.compare_logits(table_path, output)
    return proof.worst, (BATCH, length)


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

    def run_pass(
        self,
        model_pass: SubModel,
        inputs: Inputs,
        ended: tuple[SubModel, jax.Array] | None,
    ) -> tuple[jax.Array, Context]:
        """Compares a pass up to its exit, which `ended` tells of the one before it. Both ways go on
        from what the plain model gives: no difference can cancel a later one.
        """
        family = self._plan.family
        pair = self.outside_layers(family.entries, model_pass)
        x_ND, context = self.compare(enter, pair, inputs)
        if ended is not None:
            earlier, earlier_ND = ended
            pair = self.outside_layers(family.joints, model_pass)
            exits = self.outside_layers(family.exits, earlier)
            operands = (x_ND, earlier_ND)
            cuts = (pair.plain_cut, exits.plain_cut)
            plain = join(self._plan, cuts, pair.plain, exits.plain, *operands)
            cuts = (pair.cut, exits.cut)
            in_place = join(self._plan, cuts, pair.in_place, exits.in_place, *operands)
            self._note(plain, in_place)
            x_ND = plain

        for i, run in enumerate(self._sub_model.runs):
            for j in range(len(run.layers)):
                pair = self.layer(i, j, model_pass)
                x_ND = self.compare_layer(run.layers[j], pair, x_ND, context)
        return x_ND, context

    def outside_layers(self, modules: Collection[str], model_pass: SubModel) -> Pair:
        """The weights of modules beside the layers."""
        names = {}
        for path in self._ta_part:
            module, _, _ = path.partition("/")
            if module in modules:
                names[path] = self._names[path]

        plain = {}
        in_place = {}
        sizes = sizes_of(self._sub_model)
        for path in names:
            plain[path] = self._written_rows(path)
            in_place[path] = self._in_ta_shape(names[path], self._ta_rows(path), sizes, path)
        return self._pair(plain, in_place, names, sizes_of(model_pass), model_pass)

    def _pair(
        self,
        plain: dict[str, np.ndarray],
        in_place: dict[str, np.ndarray],
        names: Mapping[str, Names],
        sizes: Mapping[str, Size],
        model_pass: SubModel,
    ) -> Pair:
        """Weights of the sub-model both ways, of which a pass takes these sizes."""
        kept_sizes = immutabledict(sizes)
        cut = Cut(immutabledict(names), kept_sizes)
        if model_pass == self._sub_model:
            return Pair(plain, in_place, cut, None)
        plain_names = {path: narrow_names(names[path], sizes) for path in names}
        return Pair(plain, in_place, cut, Cut(immutabledict(plain_names), kept_sizes))

    def layer(self, run: int, index: int, model_pass: SubModel) -> Pair:
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

        # In float32, which holds every number of the narrower types that may have been written.
        plain = {}
        in_place = {}
        for bare, path in paths.items():
            plain[bare] = np.asarray(self._written[path].entry(index)[0], np.float32)
            part = np.asarray(self._ta_part[path][index], np.float32)
            in_place[bare] = self._in_ta_shape(names[bare], part, sizes, parents[bare])
        number = self._sub_model.runs[run].layers[index]
        pass_sizes = sizes_of(model_pass, model_pass.sizes_in(number))
        return self._pair(plain, in_place, names, pass_sizes, model_pass)

    def compare(self, function: Any, pair: Pair, *operands: Any) -> Any:
        """Runs modules both ways, on the same operands; returns what the plain ones do."""
        plain = function(self._plan, pair.plain_cut, pair.plain, *operands)
        in_place = function(self._plan, pair.cut, pair.in_place, *operands)
        # The first leaf is the residual stream, also where a context comes with it.
        self._note(jax.tree.leaves(plain)[0], jax.tree.leaves(in_place)[0])
        return plain

    def compare_layer(self, layer: int, pair: Pair, x_ND: jax.Array, context: Context) -> Any:
        """Runs a layer of the TA both ways: with the index that it has in each model."""
        position = self._sub_model.layers.index(layer)
        extracted = self._plan.architecture_of(self._sub_model)
        plain = run_block(extracted, pair.plain_cut, pair.plain, x_ND, context.at(position))
        in_place = run_block(
            self._plan.architecture, pair.cut, pair.in_place, x_ND, context.at(layer)
        )
        self._note(plain, in_place)
        return plain

    def compare_logits(self, table: str, hidden_ND: jax.Array) -> None:
        """Compares the logits over the ids of the batch."""
        plain = run_logits(hidden_ND, self._written_rows(table))
        in_place = run_logits(hidden_ND, self._ta_rows(table))
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
        names: Names,
        part: np.ndarray,
        sizes: Mapping[str, Size],
        parent: str,
    ) -> np.ndarray:
        """A part at its place in an array of the TA's shape, with NaN around it."""
        ta_shape = self._shapes[parent].shape
        # Of a stack one layer.
        shape = list(ta_shape[len(ta_shape) - len(names) :])
        # Of a table as many rows as the batch chooses.
        for axis, ids in self._entries.items():
            if axis in names:
                shape[names.index(axis)] = len(ids)
        target = np.full(shape, np.nan, np.float32)
        place_array(part, target, names, sizes)
        return target
