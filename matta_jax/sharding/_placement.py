"""How arrays lie on a mesh, as models and losses are told."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from matta_jax.nesting import Names


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a weight lies; by default there is one device.

    Attributes:
      gather: `(weight, axis names) -> weight`, to where layers compute with it.
      scatter: `(gradient, axis names) -> gradient`, to where the weight is kept.
      joins: whether a weight's granules are joined before it is used. With them apart, matrix
        products on a CPU or GPU move their operands about (a layer takes 1.2 times as long); but
        shards of each granule must stay apart, and on a TPU joining keeps the compiler from
        rounding weights before it gathers them.
    """

    gather: Callable[[jax.Array, Names], jax.Array] = lambda weight, names: weight
    scatter: Callable[[jax.Array, Names], jax.Array] = lambda gradient, names: gradient
    joins: bool = True


ONE_DEVICE = Placement()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the operands of the loss lie on a mesh; an axis of size 1 need not be named.

    Attributes:
      mesh: the devices.
      tokens: mesh axes over which tokens are split.
      columns: mesh axis over which the table's d_model is split; None: nowhere.
      vocab: mesh axis over which the vocabulary is computed in parts; None: whole on each device.
    """

    mesh: Mesh
    tokens: tuple[str, ...]
    columns: str | None = None
    vocab: str | None = None
