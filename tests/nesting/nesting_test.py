import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig
from matta_jax.errors import UserError


@st.composite
def nests(draw):
    """Small nests of every kind: layer, depth, d_model, and any combination."""
    heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([2, 4]))
    layers = draw(st.integers(1, 4))
    unit = draw(st.sampled_from([1, 3, 4]))
    widths = sorted(draw(st.sets(st.integers(1, 8), min_size=1, max_size=4)))
    widths = tuple(unit * width for width in widths)
    return nesting.expand(
        num_layers=layers,
        d_model=heads * head_dim,
        num_heads=heads,
        d_ff=widths[0],
        ta_num_layers=layers + draw(st.integers(0, 3)),
        ta_d_model=heads * head_dim + draw(st.integers(0, 5)),
        ta_num_heads=heads + draw(st.integers(0, 3)),
        ta_d_ff=widths[-1],
        widths=widths,
        spread=draw(st.booleans()),
    )


@st.composite
def sub_models(draw, nest):
    layers = sorted(draw(st.sets(st.sampled_from(nest.ta.layers), min_size=1)))
    return nesting.SubModel(
        d_model=draw(st.sampled_from(nest.d_models)),
        num_heads=draw(st.sampled_from(nest.head_counts)),
        layers=tuple(layers),
        d_ff=tuple(draw(st.sampled_from(nest.widths)) for _ in layers),
    )


@st.composite
def nests_with(draw, count=1):
    nest = draw(nests())
    return nest, *(draw(sub_models(nest)) for _ in range(count))


def ta_weights(nest):
    """Random numpy weights of a TA, with their axes: no two entries are equal."""
    config = ModelConfig(vocab_size=5, max_len=3, d_model=nest.student.d_model, num_heads=1, d_ff=1)
    architecture = models.architecture_of(config, nest, nest.ta)
    rng = np.random.default_rng(0)
    shapes = models.abstract_params(architecture)
    return (
        jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes),
        models.logical_axes(architecture),
        config,
    )


@hypothesis.given(nests_with())
def test_specs_round_trip(case):
    nest, sub_model = case
    assert nesting.parse_spec(nesting.format_spec(sub_model, nest), nest) == sub_model


@hypothesis.given(nests())
def test_the_student_lies_in_its_ta(nest):
    assert nest.student.within(nest.ta)
    assert nest.ta.within(nest.student) == (nest.ta == nest.student)
    nest.check(nest.student)
    nest.check(nest.ta)
    for count in range(1, nest.ta.num_layers + 1):
        layers = nest.layers_of(count)
        assert (
            len(set(layers)) == count
            and list(layers) == sorted(layers)
            and set(layers) <= set(nest.ta.layers)
        )


@hypothesis.given(nests_with())
def test_counts_are_exact_and_shapes_are_those_of_the_plain_model(case):
    nest, sub_model = case
    params, axes, config = ta_weights(nest)
    sliced = nesting.slice_model(params, axes, sub_model)
    counts = nesting.count(params, axes, sub_model, head_dim=nest.head_dim, seq_len=3)
    leaves = jax.tree.leaves(sliced)
    assert counts.parameters == sum(leaf.size for leaf in leaves)
    assert counts.bytes == sum(leaf.nbytes for leaf in leaves)
    plain = models.abstract_params(models.architecture_of(config, nest, sub_model))
    assert jax.tree.map(lambda leaf: leaf.shape, plain) == jax.tree.map(
        lambda leaf: leaf.shape, sliced
    )


def test_counted_flops_are_those_of_the_formula():
    nest = nesting.expand(num_layers=2, d_model=8, num_heads=2, d_ff=16, ta_d_ff=32)
    params, axes, _ = ta_weights(nest)
    counts = nesting.count(params, axes, nest.mix([16, 32]), head_dim=4, seq_len=3)
    per_layer = 2 * (8 * 3 * 8 + 8 * 8) + 2 * 3 * 8  # qkv and output, causal attention at half
    assert counts.flops_per_token == 2 * per_layer + 2 * 2 * 8 * (16 + 32) + 2 * 5 * 8


@hypothesis.given(nests_with())
def test_slicing_is_idempotent(case):
    nest, sub_model = case
    params, axes, _ = ta_weights(nest)
    sizes = nesting.sizes_of(sub_model, sub_model.d_ff[0])
    once = nesting.narrow(params, axes, sizes)
    twice = nesting.narrow(once, axes, sizes)
    assert jax.tree.all(jax.tree.map(np.array_equal, once, twice))


@hypothesis.given(nests_with(2))
def test_a_slice_of_a_slice_is_the_slice(case):
    nest, a, b = case
    params, axes, _ = ta_weights(nest)
    small, large = (
        {
            axis: pick(nesting.sizes_of(a, a.d_ff[0])[axis], nesting.sizes_of(b, b.d_ff[0])[axis])
            for axis in ("d_model", "heads", "d_ff")
        }
        for pick in (min, max)
    )
    direct = nesting.narrow(params, axes, small)
    nested = nesting.narrow(nesting.narrow(params, axes, large), axes, small)
    assert jax.tree.all(jax.tree.map(np.array_equal, direct, nested))


@hypothesis.given(nests_with())
def test_slices_are_the_first_entries_of_the_flat_axes(case):
    """Against an independent oracle: the flat d_ff and head axes, and plain numpy slices."""
    nest, sub_model = case
    params, axes, _ = ta_weights(nest)
    sliced = nesting.slice_model(params, axes, sub_model)
    for i, run in enumerate(sub_model.runs):
        full = params["blocks"]["0"]["mlp"]["w_in"]  # [L, G, D, F]
        flat = np.moveaxis(full, 1, 2).reshape(full.shape[0], full.shape[2], -1)
        part = sliced["blocks"][str(i)]["mlp"]["w_in"]
        part = np.moveaxis(part, 1, 2).reshape(part.shape[0], part.shape[2], -1)
        np.testing.assert_array_equal(part, flat[list(run.layers), : sub_model.d_model, : run.d_ff])
        full = params["blocks"]["0"]["attention"]["w_out"]  # [L, K, H, E, D]
        flat = full.reshape(full.shape[0], -1, *full.shape[3:])
        part = sliced["blocks"][str(i)]["attention"]["w_out"]
        part = part.reshape(part.shape[0], -1, *part.shape[3:])
        expected = flat[list(run.layers), : sub_model.num_heads, :, : sub_model.d_model]
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(
        sliced["embed"]["tokens"], params["embed"]["tokens"][:, : sub_model.d_model]
    )


def test_narrow_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="d_ff=5 must be a multiple of 4, at most 8"):
        nesting.narrow_array(np.zeros((2, 4)), ("d_ff_granules", "d_ff"), {"d_ff": 5})
    with pytest.raises(ValueError, match="d_model=9"):
        nesting.narrow_array(np.zeros(8), ("d_model",), {"d_model": 9})
    with pytest.raises(ValueError, match=r"layers=\(0, 3\)"):
        nesting.narrow_array(np.zeros(3), ("layers",), {"layers": (0, 3)})


NEST = nesting.expand(
    num_layers=12,
    d_model=64,
    num_heads=4,
    d_ff=256,
    ta_num_layers=24,
    ta_d_model=128,
    ta_num_heads=8,
    ta_d_ff=1024,
    widths=(256, 512, 1024),
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("student", NEST.student),
        ("ta", NEST.ta),
        ("layers=12;d_ff=512", nesting.SubModel(128, 8, tuple(range(12)), (512,) * 12)),
        ("d_ff=1024*6,256*12,1024*6", NEST.mix([1024] * 6 + [256] * 12 + [1024] * 6)),
        ("d_ff=wide-narrow-wide:8", NEST.mix([1024] * 4 + [256] * 16 + [1024] * 4)),
        ("d_ff=narrow-wide-narrow:8", NEST.mix([256] * 8 + [1024] * 8 + [256] * 8)),
        ("layers=0,2,4", dataclasses.replace(NEST.ta, layers=(0, 2, 4), d_ff=(1024,) * 3)),
        ("layers=7,", dataclasses.replace(NEST.ta, layers=(7,), d_ff=(1024,))),
        (" d_model = 64 ", dataclasses.replace(NEST.ta, d_model=64)),
        ("num_heads=4;layers=1", nesting.SubModel(128, 4, (0,), (1024,))),
    ],
)
def test_specs(spec, expected):
    assert nesting.parse_spec(spec, NEST) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("d_ff=300", ["d_ff=300", "256, 512, 1024"]),
        ("d_model=96", ["d_model=96", "64, 128"]),
        ("num_heads=5", ["num_heads=5", "4, 8"]),
        ("layers=25", ["layers=25", "1 to 24"]),
        ("layers=0", ["layers=0"]),
        ("layers=3,24", ["layers=24", "0 to 23"]),
        ("layers=3,2", ["layers=3,2", "rise"]),
        ("d_ff=256*3", ["3 widths", "24 layers"]),
        ("d_ff=wide-narow-wide:3", ["wide-narow-wide", "did you mean 'wide-narrow-wide'"]),
        ("d_ff=wide-narrow-wide:30", ["30 wide layers"]),
        ("d_modl=64", ["d_modl", "did you mean 'd_model'"]),
        ("d_ff=x", ["'x'", "whole number"]),
        ("d_ff=256;d_ff=512", ["d_ff is named twice"]),
        ("studnt", ["did you mean 'student'"]),
        ("", ["student, ta or AXIS=VALUE"]),
    ],
)
def test_bad_specs_name_the_axis_the_value_and_what_is_allowed(spec, words):
    with pytest.raises(UserError) as error:
        nesting.parse_spec(spec, NEST)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@hypothesis.given(st.integers(1, 40), st.data())
def test_patterns_have_their_count_and_are_symmetric_when_they_can_be(num_layers, data):
    wide = data.draw(st.integers(0, num_layers))
    outer = nesting.wide_narrow_wide(num_layers, wide)
    inner = nesting.narrow_wide_narrow(num_layers, wide)
    assert sum(outer) == sum(inner) == wide
    if wide % 2 == 0:
        assert outer == outer[::-1]
    if (num_layers - wide) % 2 == 0:
        assert inner == inner[::-1]
    if 0 < wide < num_layers:
        assert outer[0] and not inner[-1]


def test_matrix_views():
    view = nesting.matrix_view
    assert view(("layers", "d_ff_granules", "d_model", "d_ff")) == ((2,), (1, 3))
    assert view(("layers", "d_ff_granules", "d_ff", "d_model")) == ((1, 2), (3,))
    assert view(("vocab", "d_model")) is None
    assert view(("layers", "heads_granules", "qkv", "heads", "head_dim")) is None
    assert nesting.is_decayed(("vocab", "d_model")) and not nesting.is_decayed(
        ("layers", "d_model")
    )
    assert not nesting.is_decayed(("layers", "d_ff_granules", "d_ff"))
