"""Rotary positions against a float64 reference, and by their laws."""

import math

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from matta_jax.models.layers import Context, Rotary
from matta_jax.models.layers._rotary import rotate

SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64.0,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64.0},
}


def rotary(kind, theta=100.0, **more):
    return Rotary(theta, kind, tuple((SCALINGS[kind] | more).items()))


@pytest.mark.parametrize("kind", SCALINGS)
@hypothesis.given(shift=st.integers(0, 40), seed=st.integers(0, 9))
def test_scores_depend_on_distances_alone(kind, shift, seed):
    rng = np.random.default_rng(seed)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 8, 6)), jnp.float32) for _ in range(2))

    def scores(start):
        context = Context(8, start=None if start is None else jnp.asarray(start))
        cos, sin = rotary(kind).turns(6, context)
        return np.einsum("...te,...se->...ts", rotate(q, cos, sin), rotate(k, cos, sin))

    np.testing.assert_allclose(scores(shift), scores(None), atol=1e-4)
    np.testing.assert_allclose(scores([shift]), scores(None), atol=1e-4)


def test_pairs_are_half_a_head_apart_and_turn_by_their_frequency():
    x = jnp.asarray(np.eye(6, dtype=np.float32)[None, None])
    cos, sin = rotary("default").turns(6, Context(1, start=jnp.asarray(2)))
    turned = np.asarray(rotate(x, cos, sin))[0, 0]
    for i in range(3):
        angle = 2 * 100.0 ** (-2 * i / 6)
        expected = np.zeros(6)
        expected[[i, i + 3]] = math.cos(angle), math.sin(angle)
        np.testing.assert_allclose(turned[i], expected, atol=1e-6)


def test_slow_pairs_are_slowed_down_and_fast_ones_stay():
    plain, factor = rotary("default", theta=1e4).frequencies(32)
    assert factor == 1.0
    for kind in ("llama3", "yarn"):
        scaled, _ = rotary(kind, theta=1e4).frequencies(32)
        ratios = plain / scaled
        assert ratios[0] == pytest.approx(1)
        assert ratios[-1] == pytest.approx(SCALINGS[kind]["factor"])
        assert np.all(np.diff(ratios) >= -1e-5)
    linear, _ = rotary("linear", theta=1e4).frequencies(32)
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "factor"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 2.0}, 2.0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
    ],
)
def test_yarn_keeps_attention_as_sharp(more, factor):
    scaled = rotary("yarn", **more)
    assert scaled.frequencies(8)[1] == pytest.approx(factor)
    cos, _ = scaled.turns(8, Context(1))
    np.testing.assert_allclose(cos, factor, rtol=1e-6)


def test_yarn_without_truncation_blends_between_the_exact_pairs():
    exact = rotary("yarn", truncate=0.0, theta=1e4).frequencies(64)[0]
    rounded = rotary("yarn", theta=1e4).frequencies(64)[0]
    assert not np.array_equal(exact, rounded)
