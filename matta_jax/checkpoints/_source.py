"""A run's TA in its checkpoint, of which each sub-model reads its own part."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax import config as config_lib
from matta_jax.checkpoints._orbax import Checkpoints, locate, on_one_device, read_meta
from matta_jax.checkpoints._stored import StoredArray, stored_arrays
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, architecture_of, logical_axes
from matta_jax.nesting import (
    Counts,
    Nest,
    SubModel,
    Tree,
    count,
    flatten,
    nest_of,
    slice_model,
    unflatten,
)
from matta_jax.optim import make_optimizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A TA to slice from.

    Attributes:
      directory, step: where it lies.
      config: of its run.
      nest: of its run.
      abstract: shapes of its weights.
      axes: their axis names.
      stored: its weights, on disk.
      fingerprint: of all its weights, in one.
    """

    directory: pathlib.Path
    step: int
    config: Config
    nest: Nest
    abstract: Tree
    axes: Tree
    stored: Tree
    fingerprint: str

    def read(self, sub_model: SubModel) -> Tree:
        """Reads and verifies the weights of the plain model of `sub_model`, and no other bytes, as
        numpy arrays.

        Raises:
          UserError: a piece is missing or damaged.
        """
        return slice_model(self.stored, self.axes, sub_model)

    def read_many(self, sub_models: Sequence[SubModel]) -> Iterator[Tree]:
        """Yields what `read` returns for each; the TA is read once where that is fewer bytes."""
        wanted = sum(self.count(sub_model).bytes for sub_model in sub_models)
        if wanted <= self.count(self.nest.ta).bytes:
            yield from map(self.read, sub_models)
            return
        whole = self.read(self.nest.ta)
        for sub_model in sub_models:
            yield slice_model(whole, self.axes, sub_model)

    def load(self, sub_model: SubModel) -> Tree:
        """As `read`, onto the first device."""
        return jax.tree.map(jnp.asarray, self.read(sub_model))

    def architecture_of(self, sub_model: SubModel) -> Architecture:
        """The plain model that `sub_model` becomes."""
        return architecture_of(self.config.model, self.nest, sub_model)

    def count(self, sub_model: SubModel) -> Counts:
        """Counts a sub-model at the run's sequence length."""
        seq_len = self.config.data.seq_len
        return count(
            self.abstract, self.axes, sub_model, head_dim=self.nest.head_dim, seq_len=seq_len
        )


def open_source(checkpoint: str) -> Source:
    """Opens the TA of `D[@STEP]`, reading no weights. Raises UserError when it is missing or
    damaged.
    """
    directory, step = locate(checkpoint)
    path = directory / str(step)
    meta = read_meta(path)
    config = config_lib.from_dict(meta["config"])
    nest = nest_of(config)
    architecture = architecture_of(config.model, nest, nest.ta)
    abstract = abstract_params(architecture)
    stored = stored_arrays(path, "params", meta, mend="use another step of the run")
    shapes = {leaf: array.shape for leaf, array in flatten(abstract).items()}
    if {leaf: array.shape for leaf, array in stored.items()} != shapes:
        raise UserError(
            f"checkpoint {str(path)!r} is damaged: its arrays are not those of its config; use "
            "another step"
        )
    fingerprint = combined_fingerprint(stored)
    return Source(
        directory,
        step,
        config,
        nest,
        abstract,
        logical_axes(architecture),
        unflatten(stored),
        fingerprint,
    )


def combined_fingerprint(arrays: dict[str, StoredArray]) -> str:
    """One hash, in hex, over the fingerprints of all arrays."""
    listed = json.dumps({path: array.fingerprint for path, array in sorted(arrays.items())})
    return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()


def load_opt_state(source: Source) -> Any:
    """Reads and verifies the optimiser state beside a source's weights. Raises UserError when it is
    damaged.
    """
    config = source.config
    optimizer = make_optimizer(
        config.optimizer,
        num_steps=config.train.num_steps,
        axes=source.axes,
        shampoo=config.shampoo,
        nest=source.nest,
    )
    abstract = on_one_device(jax.eval_shape(optimizer.init, source.abstract))
    with Checkpoints(source.directory, read_only=True) as checkpoints:
        return checkpoints.restore(source.step, {"opt_state": abstract})["opt_state"]
