"""A run's TA, read back from its checkpoint."""

import dataclasses
import pathlib
from typing import Any

import jax

from matta_jax import config as config_lib
from matta_jax.checkpoints import Checkpoints, locate, on_one_device
from matta_jax.config import Config
from matta_jax.models import abstract_params, architecture_of, logical_axes
from matta_jax.nesting import Nest, Tree, nest_of
from matta_jax.optim import make_optimizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A TA to slice from.

    Attributes:
      directory, step: where it was read.
      config: of its run.
      nest: of its run.
      params: its weights, on one device.
      axes: their axis names.
      fingerprints: of its weights, as verified.
    """

    directory: pathlib.Path
    step: int
    config: Config
    nest: Nest
    params: Tree
    axes: Tree
    fingerprints: dict[str, str]


def load_source(checkpoint: str) -> Source:
    """Reads and verifies the TA of `D[@STEP]`. Raises UserError when it is missing or damaged."""
    directory, step = locate(checkpoint)
    with Checkpoints(directory, read_only=True) as checkpoints:
        meta = checkpoints.meta(step)
        config = config_lib.from_dict(meta["config"])
        nest = nest_of(config)
        architecture = architecture_of(config.model, nest, nest.ta)
        abstract = on_one_device(abstract_params(architecture))
        params = checkpoints.restore(step, {"params": abstract})["params"]
    return Source(directory, step, config, nest, params, logical_axes(architecture), meta["fingerprints"]["params"])


def load_opt_state(source: Source) -> Any:
    """Reads and verifies the optimiser state beside a source's weights. Raises UserError when it is damaged."""
    config = source.config
    optimizer = make_optimizer(
        config.optimizer, num_steps=config.train.num_steps, axes=source.axes, shampoo=config.shampoo, nest=source.nest
    )
    abstract = on_one_device(jax.eval_shape(optimizer.init, source.params))
    with Checkpoints(source.directory, read_only=True) as checkpoints:
        return checkpoints.restore(source.step, {"opt_state": abstract})["opt_state"]
