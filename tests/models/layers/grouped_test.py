"""Grouped attention against a float64 reference that loops over heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from matta_jax.models.layers import Build, Context, GroupedAttention

SIZES = {
    "d_model": 12,
    "kv_heads_granules": 2,
    "kv_heads": 1,
    "queries": 3,
    "head_dim": 4,
    "kv": 2,
}
OPTIONS = {
    "rotary": (100.0, "default", ()),
    "local_rotary": (7.0, "default", ()),
    "qk_norm": False,
    "qkv_bias": False,
    "query_scale": None,
    "window": None,
    "local_layers": (),
    "norm_epsilon": 1e-6,
    "norm_offset": 0.0,
}


def attention(**options):
    build = Build(SIZES, 2, nnx.Rngs(0), OPTIONS | options)
    module = GroupedAttention(build)
    leaves = jax.tree.leaves(nnx.state(module))
    noise = np.random.default_rng(1)
    noisy = [leaf + 0.3 * noise.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    nnx.update(module, jax.tree.unflatten(jax.tree.structure(nnx.state(module)), noisy))
    return module


def turned(x_TE, theta):
    half = x_TE.shape[1] // 2
    angles = np.arange(len(x_TE))[:, None] * theta ** (-np.arange(half) / half)
    a, b = x_TE[:, :half], x_TE[:, half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


def reference(module, x_TD, *, theta=100.0, window=None, scale=0.5):
    """One query head after the other, in float64."""
    weights = {name: np.asarray(value, np.float64) for name, value in flat(module).items()}
    out = np.zeros((len(x_TD), SIZES["d_model"]))
    distance = np.arange(len(x_TD))[:, None] - np.arange(len(x_TD))
    may_see = (distance >= 0) & (distance < (window or len(x_TD)))

    def head(x_TE, kind):
        if f"{kind}_norm/scale" in weights:
            rms = np.sqrt((x_TE**2).mean(-1, keepdims=True) + 1e-6)
            x_TE = x_TE / rms * weights[f"{kind}_norm/scale"]
        return turned(x_TE, theta)

    for group in range(SIZES["kv_heads_granules"]):
        biases = weights.get("b_kv", np.zeros((2, 2, 1, 4)))[group, :, 0]
        keys, values = (x_TD @ weights["w_kv"][group, :, c, 0] + biases[c] for c in range(2))
        keys = head(keys, "k")
        for query in range(SIZES["queries"]):
            q = x_TD @ weights["w_q"][group, :, 0, query]
            q = head(q + weights.get("b_q", np.zeros((2, 1, 3, 4)))[group, 0, query], "q")
            scores = np.where(may_see, q @ keys.T * scale, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            gathered = shares / shares.sum(-1, keepdims=True) @ values
            out += gathered @ weights["w_out"][group, 0, query]
    return out


def flat(module):
    state = nnx.to_pure_dict(nnx.state(module))
    names = {name: leaf for name, leaf in state.items() if not isinstance(leaf, dict)}
    return names | {
        f"{name}/scale": leaf["scale"] for name, leaf in state.items() if isinstance(leaf, dict)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "facts", "layer"),
    [
        ({}, {}, None),
        ({"qk_norm": True, "qkv_bias": True}, {}, None),
        ({"query_scale": 0.3}, {"scale": 0.3}, None),
        ({"window": 3, "local_layers": (True, False)}, {"window": 3, "theta": 7.0}, 0),
        ({"window": 3, "local_layers": (True, False)}, {}, 1),
    ],
)
def test_it_is_what_each_head_computes_by_itself(options, facts, layer):
    module = attention(**options)
    x = np.random.default_rng(0).normal(size=(9, 12))
    context = Context(9, layer=layer)
    actual = module(jnp.asarray(x, jnp.float32), context)
    np.testing.assert_allclose(actual, reference(module, x, **facts), atol=2e-5)

    # Token by token, from a cache.
    first = jnp.asarray(x[:1], jnp.float32)
    _, (keys, values) = module.extend(first, Context(1, layer=layer), None)
    room = ((0, 0), (0, 8), (0, 0))
    cache = (jnp.pad(keys, room), jnp.pad(values, room))
    for step in range(1, 9):
        here = Context(1, start=jnp.asarray(step), layer=layer)
        output, cache = module.extend(jnp.asarray(x[step : step + 1], jnp.float32), here, cache)
        np.testing.assert_allclose(output[0], actual[step], atol=2e-5)


def test_a_group_without_output_is_of_no_importance():
    module = attention()
    module.w_out[...] = module.w_out[...].at[1].set(0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 12)), jnp.float32)
    importance = module.importance(x, Context(9))
    assert importance.shape == (2, 1) and importance[0, 0] > 0 and importance[1, 0] == 0
