"""A run's TA in its checkpoint, of which each sub-model reads its own part."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints._orbax import Checkpoints, on_one_device, read_meta
from matta_jax.checkpoints._steps import locate
from matta_jax.checkpoints._stored import StoredArray, stored_arrays
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import Architecture, Plan, abstract_params, logical_axes, plan_of
from matta_jax.nesting import Counts, Nest, SubModel, Tree, flatten, slice_model, unflatten
from matta_jax.optim import optimizer_of
from matta_jax.sharding import place, weight_shardings
from matta_jax.tokenizers import own_tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A TA to slice from.

    Attributes:
      directory, step: where it lies.
      config: of its run.
      plan: of its run's models.
      stored: its weights, on disk.
      fingerprint: of all its weights, in one.
    """

    directory: storage.Path
    step: int
    config: Config
    plan: Plan
    stored: Tree
    fingerprint: str

    @property
    def nest(self) -> Nest:
        """The nest of its run."""
        return self.plan.nest

    @property
    def axes(self) -> Tree:
        """Axis names of its weights."""
        return self.plan.axes

    @property
    def abstract(self) -> Tree:
        """Shapes of its weights."""
        return self.plan.abstract

    def read(self, sub_model: SubModel) -> Tree:
        """Reads and verifies the weights of the plain model of `sub_model`, and no other bytes, as
        numpy arrays.

        Raises:
          UserError: a piece is missing or damaged.
        """
        return slice_model(self.stored, self.axes, sub_model)

    def read_many(self, sub_models: Sequence[SubModel]) -> Iterator[Tree]:
        """Yields what `read` returns for each; the TA is read once where that is fewer bytes."""
        bytes_apart = sum(self.count(sub_model).bytes for sub_model in sub_models)
        if bytes_apart <= self.plan.count(self.nest.ta).bytes:
            yield from map(self.read, sub_models)
            return
        ta_weights = jax.tree.map(StoredArray.whole, self.stored)
        for sub_model in sub_models:
            yield slice_model(ta_weights, self.axes, sub_model)

    def load(self, sub_model: SubModel, mesh: Mesh | None = None) -> Tree:
        """As `read`, onto the first device, or onto those of a mesh, each its own part. Raises
        UserError as `read`, or where the mesh does not fit the model.
        """
        if mesh is None:
            return jax.tree.map(jnp.asarray, self.read(sub_model))
        architecture = self.architecture_of(sub_model)
        axes = logical_axes(architecture)
        shardings = weight_shardings(abstract_params(architecture), axes, mesh)
        return place(self.read(sub_model), shardings)

    def load_ta(self, mesh: Mesh | None = None) -> Tree:
        """Reads the TA's weights, with all that its members own, onto the first device, or onto
        those of a mesh, each its own part.

        Raises:
          UserError: a piece is missing or damaged, or the mesh does not fit the model.
        """
        if mesh is None:
            return jax.tree.map(lambda array: jnp.asarray(array.whole()), self.stored)
        shardings = weight_shardings(self.abstract, self.axes, mesh)
        return jax.tree.map(StoredArray.onto, self.stored, shardings)

    def architecture_of(self, sub_model: SubModel) -> Architecture:
        """The plain model that `sub_model` becomes."""
        return self.plan.architecture_of(sub_model)

    def count(self, sub_model: SubModel) -> Counts:
        """Counts a sub-model at the run's sequence length."""
        return self.plan.count(sub_model)


def open_source(checkpoint: str) -> Source:
    """Opens the TA of `D[@STEP]`, reading no weights. Raises UserError when it is missing or
    damaged.

    Examples:
      >>> source = matta_jax.open_source("runs/books")
      >>> source.plan.nest.ta.num_layers
      3
    """
    directory, step = locate(checkpoint)
    path = directory / str(step)
    meta = read_meta(path)
    config = _with_own_tokenizer(config_lib.from_dict(meta["config"]), path, meta)
    plan = plan_of(config)
    stored = stored_arrays(path, "params", meta, mend="use another step of the run")

    shapes = {leaf: array.shape for leaf, array in flatten(plan.abstract).items()}
    stored_shapes = {leaf: array.shape for leaf, array in stored.items()}
    if stored_shapes != shapes:
        raise UserError(
            f"checkpoint {str(path)!r} is damaged: its arrays are not those of its config; use "
            "another step"
        )
    fingerprint = weights_fingerprint(meta)
    return Source(directory, step, config, plan, unflatten(stored), fingerprint)


def _with_own_tokenizer(config: Config, step_folder: storage.Path, meta: dict[str, Any]) -> Config:
    """A run's config with the tokenizer that its workdir keeps. Raises UserError where that is
    another than it was trained with.
    """
    # WORKDIR/checkpoints/STEP.
    workdir = storage.resolve(step_folder).parent.parent
    # Checkpoints of older versions do not tell it.
    tokenizer = own_tokenizer(config.data.tokenizer, workdir, meta.get("tokenizer"))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))


def weights_fingerprint(meta: Mapping[str, Any]) -> str:
    """One hash, in hex, over the fingerprints of all weights, of a checkpoint's document."""
    prints = meta["fingerprints"].get("params", {})
    text = json.dumps(dict(sorted(prints.items())))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_opt_state(source: Source) -> Any:
    """Reads and verifies the optimiser state beside a source's weights. Raises UserError when it is
    damaged.
    """
    optimizer = optimizer_of(source.config, source.plan)
    abstract = on_one_device(jax.eval_shape(optimizer.init, source.abstract))
    with Checkpoints(source.directory, read_only=True) as checkpoints:
        return checkpoints.restore(source.step, {"opt_state": abstract})["opt_state"]
