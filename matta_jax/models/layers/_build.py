"""What a module is built from: sizes of axes, options, random numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from immutabledict import immutabledict

from matta_jax.nesting import MEMBERS, fan_in

# Against the embedding's unit-norm rows. Larger ones drown a token in its context's average while
# attention is still uniform: 200 steps of the quickstart end at 2.11 nats with 0.25, and 500 at
# 2.16 with 1.
_RESIDUAL_SCALE = 0.25


@dataclasses.dataclass(frozen=True)
class Build:
    """What a module is built from.

    Attributes:
      sizes: size of each axis, granules among them.
      depth: layers of the model.
      rngs: of fresh weights.
      options: facts of the model that are no sizes.
    """

    sizes: Mapping[str, int]
    depth: int
    rngs: nnx.Rngs
    options: Mapping[str, Any] = dataclasses.field(default_factory=immutabledict)

    @property
    def residual_scale(self) -> float:
        """Scale of the matrices that write to the residual stream. As in GPT-2, branches shrink
        with depth, and add up to one scale.
        """
        return _RESIDUAL_SCALE / math.sqrt(2 * self.depth)

    def weight(self, *axes: str, scale: float = 1.0) -> nnx.Param:
        """A matrix or table of variance scale²/fan-in, or a bias of zeros: its axes tell which."""
        inputs = fan_in(axes)
        # A bias draws no numbers, so that adding one leaves the weights after it as they are.
        if not inputs:
            return self.constant(0.0, *axes)

        shape = tuple(self.sizes[name] for name in axes)
        num_inputs = math.prod(shape[position] for position in inputs)
        std = scale / math.sqrt(num_inputs)
        weight = std * jax.random.normal(self.rngs.params(), shape)
        return nnx.Param(weight, axes=axes)

    def constant(self, value: float, *axes: str, silent: float = 0.0) -> nnx.Param:
        """A weight of one value. Members own theirs where the model has several: an axis `members`
        is left out of a plain model. With the value `silent` an entry adds nothing.
        """
        names = tuple(name for name in axes if name != MEMBERS or MEMBERS in self.sizes)
        shape = tuple(self.sizes[name] for name in names)
        return nnx.Param(jnp.full(shape, value, jnp.float32), axes=names, silent=silent)
