"""How arrays lie on a mesh, as models and losses are told."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from matta_jax.nesting import Names, fan_in
from matta_jax.sharding._stretches import Stretches


@dataclasses.dataclass(frozen=True)
class Engine:
    """What attends within sequences.

    Attributes:
      name: splash (TPUs) or cudnn (GPUs).
      mesh: the devices; None: there is one.
      batch_axes: mesh axes over which rows are split.
      heads_axis: mesh axis over which the heads of a granule are split; None: nowhere.
      interpret: whether a kernel is run by plain operations, on devices that lack it; for tests.
    """

    name: str
    mesh: Mesh | AbstractMesh | None = None
    batch_axes: tuple[str, ...] = ()
    heads_axis: str | None = None
    interpret: bool = False


def free_axes(mesh: Mesh | AbstractMesh) -> set[str]:
    """The axes of a mesh that no `shard_map` around has taken yet."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind != AxisType.Manual}


def joins_granules(mesh: Mesh) -> bool:
    """Whether a weight's granules are joined before it is used, as `Placement` says."""
    return mesh.shape["tensor"] == 1 and mesh.devices.flat[0].platform != "tpu"


def sum_dtype(names: Names, dtype: str, reduce_dtype: str) -> str:
    """The type in which gradients of a weight are summed over devices.

    Args:
      names: of its axes.
      dtype: of weights while they are used.
      reduce_dtype: of the sums of matrices and tables; `compute` for `dtype`.
    """
    is_wide = reduce_dtype != "compute" and bool(fan_in(names))
    return reduce_dtype if is_wide else dtype


def _stay(array: jax.Array, names: Names) -> jax.Array:
    del names
    return array


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
      engine: what attends; None: blocks of queries, on any device.
      layers_alone: whether only the weights of layers are gathered and scattered; those beside
        them have come together before the pass.
      stretches: how devices share the positions of a window; None: each has all of them.
      takes_turns: whether streams run one after another. Where a tensor axis splits them, the sums
        of one over devices go on beside the products of the next.
    """

    gather: Callable[[jax.Array, Names], jax.Array] = _stay
    scatter: Callable[[jax.Array, Names], jax.Array] = _stay
    joins: bool = True
    engine: Engine | None = None
    layers_alone: bool = False
    stretches: Stretches | None = None
    takes_turns: bool = True

    @property
    def beside_layers(self) -> "Placement":
        """Where the weights beside the layers lie."""
        return dataclasses.replace(self, gather=_stay, scatter=_stay) if self.layers_alone else self


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

    mesh: Mesh | AbstractMesh
    tokens: tuple[str, ...]
    columns: str | None = None
    vocab: str | None = None
