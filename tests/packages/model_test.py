"""A model computes the same in place in its TA and with weights of its own."""

import jax
import numpy as np
import pytest

from matta_jax import nesting, packages

MIX = "num_heads=3,2,3"


@pytest.fixture(scope="module")
def in_place(run):
    [model] = packages.load_in_place(str(run[1]), [MIX])
    return model


def test_a_model_in_place_becomes_plain(in_place, models, assert_same_bits):
    extracted = packages.load_model(models()[MIX])
    plain = in_place.plain()
    assert plain.in_place is None and plain.plain() is plain
    assert (plain.spec, plain.counts) == (MIX, extracted.counts)
    assert plain.architecture == extracted.architecture
    assert_same_bits(nesting.flatten(plain.params), nesting.flatten(extracted.params))

    tokens = jax.random.randint(jax.random.key(5), (2, 20), 0, 256)
    expected = jax.jit(in_place.logits)(in_place.params, tokens)
    np.testing.assert_array_equal(jax.jit(plain.logits)(plain.params, tokens), expected)


def test_a_model_says_what_it_reads(in_place):
    assert not in_place.reads_examples
    assert list(in_place.schema.inputs) == ["tokens"]
    assert in_place.table(in_place.params).shape == (256, 24)
