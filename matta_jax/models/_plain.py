"""A plain model of an architecture, whichever kind it is: its weights, their axes, and decoding with a cache."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models._gpt import GPT, Architecture, Cache
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
    """Returns fresh weights. With a nest, each part has the scale of the smallest sub-model that it belongs to."""
    params = nnx.to_pure_dict(nnx.state(module_of(architecture)(architecture, nnx.Rngs(key))))
    if nest is None:
        return params
    axes = flatten(logical_axes(architecture))

    def scaled(path: str, weight: jax.Array) -> jax.Array:
        factor = fan_in_scales(weight.shape, axes[path], nest)
        return weight if factor is None else weight * factor

    return unflatten({path: scaled(path, weight) for path, weight in flatten(params).items()})


def init_cache(architecture: Architecture, *, batch_size: int, length: int, dtype: str = "float32") -> Cache:
    """Returns empty keys and values for `decode`, with room for `length` tokens."""
    heads = (architecture.num_heads // architecture.head_granule, architecture.head_granule)
    own = (batch_size, *heads, length, architecture.head_dim)
    shapes = [(len(run.layers), *own) for run in architecture.sub_model.runs]
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes]


def prefill(architecture: Architecture, params: Tree, tokens_BT: jax.Array, *, length: int) -> tuple[jax.Array, Cache]:
    """Runs a prompt; returns its hidden states [B·T, D] and a cache for `decode` with room for `length` tokens.

    Tokens that only fill up a prompt at its end may follow it: `decode` writes over them.
    """
    return nnx.merge(_abstract(architecture)[0], params).prefill(tokens_BT, length)


def decode(
    architecture: Architecture, params: Tree, tokens_B: jax.Array, cache: Cache, position: jax.Array
) -> tuple[jax.Array, Cache]:
    """Runs one new token of each row, at `position`; returns its hidden states [B, D] and the longer cache."""
    return nnx.merge(_abstract(architecture)[0], params).decode(tokens_B, cache, position)
