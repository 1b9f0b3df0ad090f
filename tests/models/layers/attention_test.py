"""Attention against numpy, and a cache that is extended against the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from matta_jax.models.layers import Attention, Build, Context, attend, extend_cache

attend_jitted = jax.jit(attend)


def random_heads(seq_len, batch_size=2):
    """Queries, keys and values [B, K, H, T, E]."""
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (batch_size, 2, 3, seq_len, 4)) for key in keys]


def numpy_attend(q, k, v, may_see_BTS):
    """Returns [B, T, K, H, E] in float64."""
    q, k, v = (np.asarray(part, np.float64) for part in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(may_see_BTS[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.moveaxis(weights / weights.sum(-1, keepdims=True) @ v, 3, 1)


@pytest.mark.parametrize("seq_len", [1, 7, 64, 150])
def test_each_position_sees_itself_and_those_before_it(seq_len):
    """Of one block of queries, and of several with a short last one."""
    heads = random_heads(seq_len)
    gathered = attend_jitted(*heads, Context(seq_len))
    causal = np.tril(np.ones((seq_len, seq_len), bool))[None]
    expected = numpy_attend(*heads, causal)
    np.testing.assert_allclose(gathered.reshape(expected.shape), expected, atol=2e-6)


def test_all_positions_see_those_that_count():
    heads = random_heads(5)
    seen_BS = jnp.array([[True, True, False, False, True], [True, False, False, False, False]])
    gathered = attend_jitted(*heads, Context(5, seen_BS))
    expected = numpy_attend(*heads, np.asarray(seen_BS)[:, None])
    np.testing.assert_allclose(gathered.reshape(expected.shape), expected, atol=2e-6)


@pytest.mark.parametrize("start", [3, (0, 4)], ids=["alike", "ragged"])
def test_an_extended_cache_holds_the_new_entries_and_reads_none_after_them(start):
    heads = random_heads(8)
    starts = np.broadcast_to(start, 2)
    new = [jnp.stack([part[b, :, :, s : s + 2] for b, s in enumerate(starts)]) for part in heads]
    flat = [part.reshape(12, 8, 4) for part in heads]
    # What the cache holds from `start` on is not to be read.
    is_read = jnp.arange(8) < jnp.repeat(starts, 6)[:, None]
    cache = tuple(jnp.where(is_read[..., None], part, 100.0) for part in flat[1:])
    context = Context(2, start=jnp.asarray(start))
    gathered, longer = jax.jit(extend_cache)(*new, cache, context)

    causal = np.tril(np.ones((8, 8), bool))[None]
    sequences = numpy_attend(*heads, causal)
    expected = np.stack([sequences[b, s : s + 2] for b, s in enumerate(starts)])
    np.testing.assert_allclose(gathered.reshape(expected.shape), expected, atol=2e-6)
    is_written = jnp.arange(8) < jnp.repeat(starts + 2, 6)[:, None]
    for kept, part in zip(longer, flat[1:], strict=True):
        expected = jnp.where(is_written[..., None], part, 100.0)
        np.testing.assert_array_equal(kept, expected)


def test_without_a_cache_the_new_entries_are_the_cache():
    q, k, v = random_heads(4)
    gathered, cache = jax.jit(extend_cache)(q, k, v, None, Context(4))
    np.testing.assert_array_equal(gathered, attend_jitted(q, k, v, Context(4)))
    np.testing.assert_array_equal(cache[0], k.reshape(12, 4, 4))
    np.testing.assert_array_equal(cache[1], v.reshape(12, 4, 4))


def test_granules_are_no_more_than_a_way_to_store():
    """One granule of four heads is two of two."""
    sizes = {"d_model": 8, "heads_granules": 2, "heads": 2, "head_dim": 4, "qkv": 3}
    structure, weights = nnx.split(
        jax.jit(lambda: Attention(Build(sizes, depth=1, rngs=nnx.Rngs(0))))()
    )
    weights = nnx.to_pure_dict(weights)
    x_ND = jax.random.normal(jax.random.key(1), (6, 8))

    @jax.jit
    def run(weights):
        attention = nnx.merge(structure, weights)
        return attention(x_ND, Context(3)), attention.importance(x_ND, Context(3))

    joined = weights | {
        "w_qkv": np.concatenate(weights["w_qkv"], axis=2)[None],  # [K, D, C, H, E]
        "b_qkv": np.concatenate(weights["b_qkv"], axis=1)[None],
        "w_out": np.concatenate(weights["w_out"])[None],
    }
    output, importance = run(joined)
    expected, expected_importance = run(weights)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(importance.ravel(), expected_importance.ravel(), rtol=1e-5)
