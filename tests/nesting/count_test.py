"""Counts: exact, and of the formula."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np

from matta_jax import models, nesting


@hypothesis.given(st.data())
def test_counts_are_exact_and_shapes_are_those_of_the_plain_model(cases, ta_weights, data):
    nest, sub_model = data.draw(cases())
    weights = ta_weights(nest)
    sliced = weights.slice(sub_model)
    counts = weights.plan.count(sub_model)
    leaves = jax.tree.leaves(sliced)
    assert counts.parameters == sum(leaf.size for leaf in leaves)
    assert counts.bytes == sum(leaf.nbytes for leaf in leaves)

    architecture = weights.plan.architecture_of(sub_model)
    assert counts == models.count_model(architecture, seq_len=3)
    shape = lambda leaf: leaf.shape
    plain = models.abstract_params(architecture)
    assert jax.tree.map(shape, plain) == jax.tree.map(shape, sliced)
    names = nesting.flatten(nesting.slice_axes(weights.axes, sub_model))
    assert names == nesting.flatten(models.logical_axes(architecture))


def test_counted_flops_are_those_of_the_formula(ta_weights):
    nest = nesting.expand(num_layers=2, d_model=8, num_heads=2, d_ff=16, ta_d_ff=32)
    counts = ta_weights(nest).plan.count(nest.mix([16, 32]))
    per_layer = 2 * (8 * 3 * 8 + 8 * 8) + 2 * 3 * 8  # qkv and output, causal attention at half
    assert counts.flops_per_token == 2 * per_layer + 2 * 2 * 8 * (16 + 32) + 2 * 5 * 8


def test_heads_that_vary_by_layer_are_counted_by_layer(ta_weights):
    nest = nesting.expand(num_layers=2, d_model=8, num_heads=2, d_ff=16, ta_num_heads=3)
    counts = ta_weights(nest).plan.count(nest.ta.resized(heads=(3, 2)))
    attention = sum(2 * 4 * (8 * 3 * heads + heads * 8) + 2 * 3 * heads * 4 for heads in (3, 2))
    assert counts.flops_per_token == attention + 2 * 2 * 2 * 8 * 16 + 2 * 5 * 8


def test_tables_count_where_they_are_multiplied_with():
    weights = {"table": np.zeros((5, 8), np.float16), "norm": np.zeros(8, np.float32)}
    axes = {"table": ("vocab", "d_model"), "norm": ("d_model",)}
    counts = nesting.count_weights(weights, axes)
    assert counts == nesting.Counts(parameters=48, bytes=2 * 40 + 4 * 8, flops_per_token=0)
    counts = nesting.count_weights(weights, axes, heads=["table"], attention=7)
    assert counts.flops_per_token == 2 * 40 + 7
