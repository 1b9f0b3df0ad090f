"""Decoding with a cache, against the pass over the whole sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models
from matta_jax.nesting import SubModel

LENGTH = 12
SIZES = {
    "uniform": {"heads": 4, "d_ff": 8},
    "widths": {"heads": 4, "d_ff": (8, 16, 8)},
    "heads": {"heads": (4, 2, 4), "d_ff": (8, 16, 8)},
}
# With mixed heads, widths are mixed too.
MIXED = ("uniform", "heads")


@functools.cache
def make(name):
    """(architecture, decoder's weights, tokens [3, 12], hidden states [3, 12, 16])."""
    num_layers = 2 if name == "uniform" else 3
    sub_model = SubModel(tuple(range(num_layers)), {"d_model": 16}).resized(**SIZES[name])
    fixed = {"vocab": 32, "positions": LENGTH, "head_dim": 4, "qkv": 3}
    architecture = models.Architecture("gpt", LENGTH, fixed, sub_model, {"heads": 2, "d_ff": 8})
    params = jax.jit(lambda: models.init_params(architecture, jax.random.key(0)))()
    tokens_BT = jax.random.randint(jax.random.key(1), (3, LENGTH), 0, 32)
    apply = functools.partial(models.apply, architecture)
    hidden_ND = jax.jit(apply)(params, {"tokens": tokens_BT})
    weights = jax.jit(functools.partial(models.decoder_weights, architecture))(params)
    return architecture, weights, tokens_BT, np.asarray(hidden_ND).reshape(3, LENGTH, 16)


@pytest.fixture(params=[pytest.param("uniform", marks=pytest.mark.slow), "widths"])
def token_by_token(request):
    return make(request.param)


def test_decoding_token_by_token_gives_what_the_whole_sequence_gives(token_by_token):
    architecture, weights, tokens_BT, expected_BTD = token_by_token
    cache = models.init_cache(architecture, batch_size=3, length=LENGTH)
    step = jax.jit(functools.partial(models.extend, architecture))
    for position in range(LENGTH):
        token_B1 = tokens_BT[:, position : position + 1]
        hidden_BD, cache = step(weights, token_B1, cache, jnp.int32(position))
        np.testing.assert_allclose(hidden_BD, expected_BTD[:, position], atol=2e-5)


def padded_prompt(tokens_BT, lengths, width):
    """The first `lengths` tokens of each row, filled up with ids that are in no row there."""
    is_text = np.arange(width) < np.asarray(lengths)[:, None]
    return jnp.where(is_text, tokens_BT[:, :width], (tokens_BT[:, :width] + 7) % 32)


@pytest.mark.few(3)
@pytest.mark.parametrize("num_new", [1, 3, 7])
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize(
    "start", [4, (0, 2, 5), (5, 5, 1)], ids=["alike", "ragged", "ragged-again"]
)
def test_new_tokens_after_a_padded_prompt_are_those_of_the_whole_sequence(name, num_new, start):
    """The prompt's padding is written over, as far as there are new tokens, and never read."""
    _, weights, tokens_BT, expected_BTD = make(name)
    lengths = np.broadcast_to(start, 3)
    prompt_BT = padded_prompt(tokens_BT, lengths, 6)
    _, cache = _prefill(name)(weights, prompt_BT)
    new_BT = lengths[:, None] + np.arange(num_new)
    new_tokens_BT = jnp.take_along_axis(tokens_BT, new_BT, axis=1)
    expected = np.take_along_axis(expected_BTD, new_BT[..., None], axis=1)

    position = jnp.asarray(start, jnp.int32)
    extend = _extend(name)
    # First with others in their place, which these are to write over.
    _, cache = extend(weights, (new_tokens_BT + 3) % 32, cache, position)
    hidden_ND, cache = extend(weights, new_tokens_BT, cache, position)
    np.testing.assert_allclose(hidden_ND.reshape(expected.shape), expected, atol=2e-5)

    # And one more after these.
    last_B1 = (lengths + num_new)[:, None]
    hidden_BD, _ = extend(
        weights, jnp.take_along_axis(tokens_BT, last_B1 % LENGTH, axis=1), cache, position + num_new
    )
    is_inside = last_B1[:, 0] < LENGTH
    expected = np.take_along_axis(expected_BTD, last_B1[..., None] % LENGTH, axis=1)[:, 0]
    np.testing.assert_allclose(hidden_BD[is_inside], expected[is_inside], atol=2e-5)


@functools.cache
def _extend(name):
    return jax.jit(functools.partial(models.extend, make(name)[0]))


@functools.cache
def _prefill(name):
    return jax.jit(functools.partial(models.prefill, make(name)[0], length=LENGTH))


@pytest.mark.parametrize("name", MIXED)
def test_a_prompt_gives_what_the_whole_sequence_gives(name):
    _, weights, tokens_BT, expected_BTD = make(name)
    hidden_ND, cache = _prefill(name)(weights, tokens_BT[:, :6])
    np.testing.assert_allclose(hidden_ND.reshape(3, 6, 16), expected_BTD[:, :6], atol=2e-5)
    empty = models.init_cache(make(name)[0], batch_size=3, length=LENGTH)
    shape = lambda leaf: (leaf.shape, leaf.dtype)
    assert jax.tree.map(shape, cache) == jax.tree.map(shape, empty)
    assert not any(leaf.any() for leaf in jax.tree.leaves(empty))
