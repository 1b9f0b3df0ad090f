"""How tokens are drawn, against what a distribution says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from matta_jax.errors import UserError
from matta_jax.serving import Sampling
from matta_jax.serving._sampling import cut, draw, draws_of

V = 12


def prepare(samplings, texts=None, allowed=None):
    rows = len(samplings)
    texts = texts or [[] for _ in range(rows)]
    return draws_of(samplings, range(rows), texts, vocab_size=V, allowed=allowed)


def expected_row(z, sampling, text=(), allowed=None):
    """The settings, one after another, as their papers and libraries have them."""
    z = np.array(z, np.float64)
    for token in set(text):
        factor = sampling.repetition_penalty
        z[token] = z[token] / factor if z[token] > 0 else z[token] * factor
    for token, bias in sampling.logit_bias.items():
        z[token] += bias
    if allowed is not None:
        z[~allowed] = -np.inf
    z = z / (sampling.temperature or 1)
    if sampling.top_k:
        z[z < np.sort(z)[-min(sampling.top_k, V)]] = -np.inf
    p = np.exp(z - z.max())
    p /= p.sum()
    if sampling.top_p:
        order = np.argsort(-p)
        before = np.cumsum(p[order]) - p[order]
        z[order[before >= sampling.top_p]] = -np.inf
    if sampling.min_p:
        z[p < sampling.min_p * p.max()] = -np.inf
    return z


SAMPLINGS = st.builds(
    Sampling,
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.floats(0.05, 1.0)),
    min_p=st.one_of(st.none(), st.floats(0.0, 0.9)),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-3, 3), max_size=3),
)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.lists(SAMPLINGS, min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, V - 1), max_size=4), min_size=3, max_size=3),
    st.integers(0, 2**31),
)
def test_each_row_is_cut_by_its_own_settings(samplings, texts, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(3, V)).astype(np.float32) * 2
    allowed = rng.random(V) < 0.8
    allowed[0] = True
    actual = np.asarray(cut(jnp.asarray(z), prepare(samplings, texts, allowed)))
    for row in range(3):
        if samplings[row].is_greedy:
            continue
        expected = expected_row(z[row], samplings[row], texts[row], allowed)
        stays = np.isfinite(expected)
        # A share that is on the edge may fall on either side of it, in float32.
        assert (np.isfinite(actual[row]) != stays).sum() <= 1
        both = stays & np.isfinite(actual[row])
        np.testing.assert_allclose(actual[row][both], expected[both], rtol=1e-5, atol=1e-5)


def test_top_p_counts_among_the_top_k():
    z = np.full((1, V), -50.0, np.float32)
    z[0, :4] = np.log([0.4, 0.3, 0.2, 0.1])

    def kept(top_k, top_p):
        return list(np.isfinite(cut(z, prepare([Sampling(1.0, top_k, top_p)])))[0, :4])

    assert kept(None, 0.4) == [True, False, False, False]
    assert kept(None, 0.41) == [True, True, False, False]
    assert kept(2, 0.57) == [True, False, False, False]  # 0.4 of 0.7 is 0.571.
    assert kept(2, 0.58) == [True, True, False, False]
    assert kept(9, None) == [True] * 4


def test_draws_have_the_distribution_of_the_cut_logits():
    z = np.random.default_rng(0).normal(size=V).astype(np.float32)
    rows = 20_000
    samplings = [Sampling(0.7, top_k=6, seed=5)] * rows
    draws = prepare(samplings)
    cut_z = cut(jnp.tile(z, (rows, 1)), draws)
    drawn = np.asarray(draw(cut_z, draws, jnp.full(rows, 3)))
    p = np.asarray(jax.nn.softmax(cut_z[0]), np.float64)
    counts = np.bincount(drawn, minlength=V)
    assert (counts[p == 0] == 0).all()
    inside = p > 0
    assert scipy.stats.chisquare(counts[inside], rows * p[inside] / p.sum()).pvalue > 1e-3


@pytest.mark.slow
def test_a_row_draws_by_its_seed_its_sample_and_its_step_alone():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, V)), jnp.float32)
    hot = Sampling(2.0, seed=4)

    def drawn(sampling, index, step, others=()):
        samplings = [*others, sampling]
        draws = draws_of(
            samplings, [*range(len(others)), index], [[]] * len(samplings), vocab_size=V
        )
        rows = jnp.tile(z, (len(samplings), 1))
        return int(draw(cut(rows, draws), draws, jnp.full(len(samplings), step))[-1])

    texts = {(seed, index): [drawn(Sampling(2.0, seed=seed), index, step) for step in range(12)]
             for seed in (4, 5) for index in (0, 1)}  # fmt: skip
    assert len({tuple(text) for text in texts.values()}) == 4
    beside = (Sampling(0), Sampling(0.3, top_k=2, seed=9, min_p=0.1), Sampling(1.0, top_p=0.5))
    assert [drawn(hot, 1, step, beside) for step in range(12)] == texts[4, 1]
    assert drawn(Sampling(0), 0, 0, beside) == int(jnp.argmax(z))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_p": -0.1}, "min_p=-0.1 must be from 0 to 1"),
        ({"min_p": float("nan")}, "min_p=nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a finite number above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"logit_bias": {3: 101.0}}, "logit_bias=101.0 of token 3 must be from -100 to 100"),
    ],
)
def test_bad_settings_end_in_one_line(options, words):
    with pytest.raises(UserError, match=words):
        Sampling(**options)
