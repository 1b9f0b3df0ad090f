"""A plain model of an architecture, whichever kind it is: its weights and their axes."""

import functools

import jax
from flax import nnx

from matta_jax.models._gpt import GPT, Architecture
from matta_jax.models._scorer import Scorer
from matta_jax.nesting import Names, Nest, Tree, fan_in_scales, flatten, unflatten


def module_of(architecture: Architecture) -> type[GPT]:
    """The module of a plain model."""
    return Scorer if architecture.num_classes else GPT


@functools.lru_cache(maxsize=64)
def _abstract(architecture: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: module_of(architecture)(architecture, nnx.Rngs(0))))


def abstract_params(architecture: Architecture) -> Tree:
    """The weights of a plain model as nested dicts of `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(_abstract(architecture)[1])


def logical_axes(architecture: Architecture) -> Tree:
    """The axis names of each weight, as nested dicts of tuples, read from the modules' metadata."""
    axes: dict[str, Names] = {}
    for path, variable in nnx.to_flat_state(_abstract(architecture)[1]):
        stack = ("layers",) if path[0] == "blocks" else ()
        axes["/".join(map(str, path))] = stack + variable.get_metadata()["axes"]
    return unflatten(axes)


def init_params(architecture: Architecture, key: jax.Array, nest: Nest | None = None) -> Tree:
    """Returns fresh weights. With a nest, each part has the scale of the smallest sub-model that it
    belongs to.
    """
    params = nnx.to_pure_dict(nnx.state(module_of(architecture)(architecture, nnx.Rngs(key))))
    if nest is None:
        return params
    axes = flatten(logical_axes(architecture))

    def scaled(path: str, weight: jax.Array) -> jax.Array:
        factor = fan_in_scales(weight.shape, axes[path], nest)
        return weight if factor is None else weight * factor

    return unflatten({path: scaled(path, weight) for path, weight in flatten(params).items()})
