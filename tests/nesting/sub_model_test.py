"""A sub-model by itself: equality by use, sizes by layer, runs."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest

from matta_jax.nesting import SubModel

SIZES = {"d_model": 16, "heads": 3, "d_ff": 32}


def test_sub_models_are_equal_when_they_use_the_same_weights():
    by_layer = SubModel((0, 2), {"d_model": 16, "heads": 3}, {"d_ff": (32, 32)})
    uniform = SubModel((0, 2), SIZES)
    assert by_layer == uniform and hash(by_layer) == hash(uniform)
    assert by_layer.sizes == SIZES and not by_layer.per_layer
    assert SubModel((0, 2), SIZES, member=1) != uniform
    assert uniform.resized(heads=(2, 3)) != uniform
    assert uniform.resized(heads=(2, 3)).resized(heads=3) == uniform


def test_sizes_of_each_layer():
    sub_model = SubModel((0, 1, 4), SIZES).resized(heads=(2, 3, 2), d_ff=(16, 16, 8))
    assert sub_model.along("heads") == (2, 3, 2)
    assert sub_model.along("d_model") == (16, 16, 16)
    assert (sub_model.largest("heads"), sub_model.largest("d_model")) == (3, 16)
    assert sub_model.sizes_in(4) == {"d_model": 16, "heads": 2, "d_ff": 8}
    assert sub_model.sizes_in(2) is None
    assert set(sub_model.axes) == {"d_model", "heads", "d_ff"}
    with pytest.raises(ValueError, match="sizes differ between layers"):
        sub_model.with_layers((0, 1))


def test_resizing_keeps_layers_and_member():
    sub_model = SubModel((1, 3), SIZES, member=2)
    assert sub_model.resized(heads=(1, 2)) == SubModel(
        (1, 3), {"d_model": 16, "d_ff": 32}, {"heads": (1, 2)}, member=2
    )
    assert sub_model.with_layers((0,)) == SubModel((0,), SIZES, member=2)


def test_sizes_must_fit_the_layers():
    with pytest.raises(ValueError, match="2 layers but 3 sizes of d_ff"):
        SubModel((0, 1), {}, {"d_ff": (1, 2, 3)})
    with pytest.raises(ValueError, match="heads has one size and a size for each layer"):
        SubModel((0, 1), {"heads": 1}, {"heads": (1, 2)})


@hypothesis.given(st.data())
def test_runs_are_the_layers_in_stretches_of_equal_sizes(cases, data):
    _, sub_model = data.draw(cases())
    runs = sub_model.runs
    assert sum((run.layers for run in runs), ()) == sub_model.layers
    for run in runs:
        for layer in run.layers:
            assert sub_model.sizes_in(layer) == run.sizes
    for run, next_run in itertools.pairwise(runs):
        assert run.sizes != next_run.sizes


@hypothesis.given(st.data())
def test_a_model_lies_within_another_when_each_of_its_layers_does(cases, data):
    nest, a, b = data.draw(cases(2))
    expected = all(
        layer in b.layers
        and all(size <= b.sizes_in(layer)[axis] for axis, size in a.sizes_in(layer).items())
        for layer in a.layers
    )
    assert a.within(b) == expected
    assert a.within(nest.ta) and a.within(a)


def test_what_a_member_owns_lies_in_no_other():
    first, second = SubModel((0,), SIZES, member=0), SubModel((0,), SIZES, member=1)
    assert first.within(first) and not first.within(second)
    assert not SubModel((0,), SIZES).within(first)
