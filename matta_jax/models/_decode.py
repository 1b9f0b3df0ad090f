"""A plain GPT one token at a time, with the keys and values of what was read kept in a cache.

Shape letters: B batch, T tokens of the prompt, N positions (= B·T), D d_model, H heads, S cache, E
head_dim.
"""

import jax
import jax.numpy as jnp

from matta_jax.models._gpt import Architecture
from matta_jax.models._nested import module_apply
from matta_jax.models._plain import logical_axes
from matta_jax.nesting import Tree, join_granules

Cache = list[tuple[jax.Array, jax.Array]]
"""Keys and values [B·H, S, E] of each layer."""


def decoder_weights(architecture: Architecture, params: Tree) -> Tree:
    """The weights as `prefill` and `decode` read them: each layer's by themselves, in whole
    matrices.

    Made once, outside the loop over tokens: this copies the layers' weights.
    """
    axes, layers = logical_axes(architecture), []
    for name, run in enumerate(architecture.sub_model.runs):
        own = jax.tree.map(
            lambda names: names[1:],
            axes["blocks"][str(name)],
            is_leaf=lambda node: type(node) is tuple,
        )
        for i in range(len(run.layers)):
            layers.append(
                join_granules(
                    jax.tree.map(lambda weight, i=i: weight[i], params["blocks"][str(name)]), own
                )
            )
    return {"embed": params["embed"], "layers": layers, "norm": params["norm"]}


def init_cache(
    architecture: Architecture, *, batch_size: int, length: int, dtype: str = "float32"
) -> Cache:
    """Returns empty keys and values for `decode`, with room for `length` tokens."""
    shape = (batch_size * architecture.num_heads, length, architecture.head_dim)
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in architecture.d_ff]


def prefill(weights: Tree, tokens_BT: jax.Array, *, length: int) -> tuple[jax.Array, Cache]:
    """Runs a prompt; returns its normed hidden states [B·T, D] and a cache for `decode` with room
    for `length` tokens.

    `weights` are those of `decoder_weights`. Tokens that only fill up a prompt at its end may
    follow it: `decode` writes over them.
    """
    seq_len, cache = tokens_BT.shape[1], []
    room = ((0, 0), (0, length - seq_len), (0, 0))
    x_ND = module_apply("embed", weights["embed"], tokens_BT)
    for layer in weights["layers"]:
        x_ND, both = module_apply("block", layer, x_ND, seq_len, method="prefill")
        keys, values = (jnp.pad(part.reshape(-1, *part.shape[-2:]), room) for part in both)
        cache.append((keys, values))
    return module_apply("norm", weights["norm"], x_ND), cache


def decode(
    weights: Tree, tokens_B: jax.Array, cache: Cache, position: jax.Array
) -> tuple[jax.Array, Cache]:
    """Runs one new token of each row, at `position`; returns its normed hidden states [B, D] and
    the longer cache.

    `weights` are those of `decoder_weights`.
    """
    x_BD, new = weights["embed"]["tokens"][tokens_B] + weights["embed"]["positions"][position], []
    for own, layer in zip(cache, weights["layers"], strict=True):
        x_BD, longer = module_apply("block", layer, x_BD, own, position, method="decode")
        new.append(longer)
    return module_apply("norm", weights["norm"], x_BD), new
