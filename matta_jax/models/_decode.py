"""A plain language model on new tokens, with the keys and values of what was read kept in a cache.

Shape letters: B batch, T new tokens, N positions (= B·T), D d_model, H heads, S cache, E head_dim.
"""

from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.models._architecture import Architecture
from matta_jax.models._plain import abstract_params, bind, bind_block, logical_axes
from matta_jax.nesting import BLOCKS, Tree, join_granules, layer_axes, outside_blocks

Cache = list[Any]
"""What each layer keeps: of attention keys and values [B·H, S, E]."""


def decoder_weights(architecture: Architecture, params: Tree) -> Tree:
    """The weights as `extend` reads them: each layer's by themselves, in matrices of one granule.

    Made once, outside the loop over tokens: this copies the layers' weights.
    """
    axes = logical_axes(architecture)
    layers = []
    for i, run in enumerate(architecture.sub_model.runs):
        stack = params[BLOCKS][str(i)]
        names = layer_axes(axes[BLOCKS][str(i)])
        # An index into the run's own stack, not into the TA's layers.
        for j in range(len(run.layers)):
            layers.append(join_granules(_layer_of(stack, j), names))
    return outside_blocks(params) | {"layers": layers}


def _layer_of(stack: Tree, index: int) -> Tree:
    return jax.tree.map(lambda weight: weight[index], stack)


def extend(
    architecture: Architecture,
    weights: Tree,
    tokens_BT: jax.Array,
    cache: Cache | None,
    start: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """Runs new tokens after those that are cached: of a prompt, one more of each row, or several
    that are to be verified.

    Args:
      architecture: of the model.
      weights: of `decoder_weights`.
      tokens_BT: the new tokens, one or more of each row.
      cache: of the tokens before them, with room for the new ones; None: there are none.
      start: the position of the first new token, [] for all rows alike or [B]; None with no cache.
        What the cache holds from there on is written over, and not read.

    Returns:
      The normed hidden states [B·T, D] of the new tokens, and the longer cache; without one before
      it, the cache of these tokens alone.
    """
    family = architecture.family
    options = architecture.options
    outer = dict(weights)
    layers = outer.pop("layers")
    modules = bind(family, options, outer)
    x_ND, context = family.enter(modules, {"tokens": tokens_BT}, start)

    # No scan: layers may be of different sizes, and so are their caches.
    longer = []
    for i, layer in enumerate(layers):
        block = bind_block(family, options, layer)
        layer_cache = None if cache is None else cache[i]
        x_ND, layer_cache = block.extend(x_ND, context.at(i), layer_cache)
        longer.append(layer_cache)
    return family.leave(modules, x_ND, context, architecture.sub_model.sizes), longer


def prefill(
    architecture: Architecture,
    weights: Tree,
    tokens_BT: jax.Array,
    *,
    length: int,
) -> tuple[jax.Array, Cache]:
    """Runs a prompt; returns its normed hidden states [B·T, D] and a cache with room for `length`
    tokens.

    Tokens that only fill up a prompt at its end may follow it: `extend` writes over them.
    """
    hidden_ND, cache = extend(architecture, weights, tokens_BT, None, None)
    # Of a cache [B·H, S, E], at the end of S.
    room = ((0, 0), (0, length - tokens_BT.shape[1]), (0, 0))
    return hidden_ND, jax.tree.map(lambda layer: jnp.pad(layer, room), cache)


def init_cache(
    architecture: Architecture,
    *,
    batch_size: int,
    length: int,
    dtype: str = "float32",
) -> Cache:
    """Returns an empty cache for `extend`, with room for `length` tokens."""

    # What a family caches is the family's affair: its shapes are read off a prompt of one token,
    # which is traced and not run.
    def fill() -> Cache:
        shapes = abstract_params(architecture)
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), shapes)
        tokens_BT = jnp.zeros((batch_size, 1), jnp.int32)
        weights = decoder_weights(architecture, params)
        return prefill(architecture, weights, tokens_BT, length=length)[1]

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), jax.eval_shape(fill))
