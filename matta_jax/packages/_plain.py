"""Plain runs: the config and the weights with which training takes up a model that stands alone."""

import dataclasses
from typing import Any

import jax

from matta_jax.config import Config, NestConfig
from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.nesting import Names, Tree, merge_granules, split_granules


def plain_config(config: Config, architecture: Architecture) -> Config:
    """The config of a run that trains a model of this architecture and nothing around it.

    Raises:
      UserError: the model has mixed widths, or heads of another width than a config can say.
    """
    if len(set(architecture.d_ff)) > 1:
        widths = ",".join(map(str, architecture.d_ff))
        raise UserError(
            f"d_ff={widths}: a model of mixed widths cannot be trained on; extract one of a single "
            "width"
        )
    if architecture.num_heads * architecture.head_dim != architecture.d_model:
        raise UserError(
            f"num_heads={architecture.num_heads} of {architecture.head_dim} do not make d_model="
            f"{architecture.d_model}: this model cannot be trained on; extract one whose heads "
            "fill its d_model"
        )
    model = dataclasses.replace(
        config.model,
        vocab_size=architecture.vocab_size,
        max_len=architecture.max_len,
        num_layers=len(architecture.d_ff),
        d_model=architecture.d_model,
        num_heads=architecture.num_heads,
        d_ff=architecture.d_ff[0],
    )
    return dataclasses.replace(config, model=model, nest=NestConfig(mix_per_step=0))


def regranulate(weights: Tree, axes: Tree, architecture: Architecture) -> Tree:
    """Cuts granulated axes, whatever granules they have now, into those of `architecture`."""
    return jax.tree.map(
        lambda weight, names: regranulated(weight, names, architecture.granules), weights, axes
    )


def regranulated(weight: Any, names: Names, granules: dict[str, int]) -> Any:
    """`regranulate` of one weight."""
    return split_granules(merge_granules(weight, names), names, granules)
