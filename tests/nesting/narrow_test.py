"""Slices: which entries, of which shapes, and back to their place."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from matta_jax import nesting
from matta_jax.nesting import Pick

AXES = ("d_model", "heads", "d_ff")


def layer_sizes(sub_model):
    """What a sub-model keeps of the first of its layers."""
    return sub_model.sizes_in(sub_model.layers[0])


def trees_equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.slow
@hypothesis.given(st.data())
def test_slicing_is_idempotent(cases, ta_weights, data):
    nest, sub_model = data.draw(cases())
    weights = ta_weights(nest)
    sizes = nesting.sizes_of(sub_model, layer_sizes(sub_model))
    once = nesting.narrow(weights.params, weights.axes, sizes)
    twice = nesting.narrow(once, weights.axes, sizes)
    assert trees_equal(once, twice)


@hypothesis.given(st.data())
def test_a_slice_of_a_slice_is_the_slice(cases, ta_weights, data):
    nest, a, b = data.draw(cases(2))
    weights = ta_weights(nest)
    a_sizes, b_sizes = layer_sizes(a), layer_sizes(b)
    small = {axis: min(a_sizes[axis], b_sizes[axis]) for axis in AXES}
    large = {axis: max(a_sizes[axis], b_sizes[axis]) for axis in AXES}
    direct = nesting.narrow(weights.params, weights.axes, small)
    outer = nesting.narrow(weights.params, weights.axes, large)
    assert trees_equal(direct, nesting.narrow(outer, weights.axes, small))


@hypothesis.given(st.data())
def test_slices_are_the_first_entries_of_the_flat_axes(cases, ta_weights, data):
    """Against an independent oracle: the flat d_ff and head axes, and plain numpy slices."""
    nest, sub_model = data.draw(cases())
    weights = ta_weights(nest)
    params, sliced = weights.params, weights.slice(sub_model)
    d_model = sub_model.sizes["d_model"]
    for i, run in enumerate(sub_model.runs):
        full = params["blocks"]["0"]["mlp"]["w_in"]  # [L, G, D, F]
        flat = np.moveaxis(full, 1, 2).reshape(full.shape[0], full.shape[2], -1)
        part = sliced["blocks"][str(i)]["mlp"]["w_in"]
        part = np.moveaxis(part, 1, 2).reshape(part.shape[0], part.shape[2], -1)
        expected = flat[list(run.layers), :d_model, : run.sizes["d_ff"]]
        np.testing.assert_array_equal(part, expected)

        full = params["blocks"]["0"]["attention"]["w_out"]  # [L, K, H, E, D]
        flat = full.reshape(full.shape[0], -1, *full.shape[3:])
        part = sliced["blocks"][str(i)]["attention"]["w_out"]
        part = part.reshape(part.shape[0], -1, *part.shape[3:])
        expected = flat[list(run.layers), : run.sizes["heads"], :, :d_model]
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(sliced["embed"]["tokens"], params["embed"]["tokens"][:, :d_model])


@hypothesis.settings(max_examples=5)
@hypothesis.given(st.data())
def test_parts_go_back_to_their_place(cases, ta_weights, data):
    """Each entry of a run's part, and no other entry."""
    nest, sub_model = data.draw(cases())
    weights = ta_weights(nest)
    names = nesting.flatten(nesting.stack_of(weights.axes))
    for i in range(len(sub_model.runs)):
        sizes = nesting.run_sizes(sub_model, i)
        for path, array in nesting.flatten(nesting.stack_of(weights.params)).items():
            part = nesting.narrow_array(array, names[path], sizes)
            target = np.zeros_like(array)
            nesting.place_array(part, target, names[path], sizes)
            assert np.count_nonzero(target) == part.size
            assert np.array_equal(nesting.narrow_array(target, names[path], sizes), part)
            assert np.array_equal(target[target != 0], array[target != 0])


@hypothesis.settings(max_examples=5)
@hypothesis.given(st.data())
def test_granules_may_be_others(cases, ta_weights, data):
    """Cut by any granules, weights are the same; and so they are in one piece."""
    nest, _ = data.draw(cases())
    weights = ta_weights(nest)
    ones = {"heads": 1, "d_ff": 1}
    fine = nesting.regranulate(weights.params, weights.axes, ones)
    assert trees_equal(nesting.regranulate(fine, weights.axes, nest.granules), weights.params)
    joined = nesting.join_granules(fine, weights.axes)
    assert trees_equal(joined, nesting.join_granules(weights.params, weights.axes))
    names = nesting.flatten(weights.axes)
    for path, leaf in nesting.flatten(joined).items():
        for name, size in zip(names[path], leaf.shape, strict=True):
            assert size == 1 or not name.endswith(nesting.GRANULES)


def test_narrow_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="d_ff=5 must be a multiple of 4, at most 8"):
        nesting.narrow_array(np.zeros((2, 4)), ("d_ff_granules", "d_ff"), {"d_ff": 5})
    with pytest.raises(ValueError, match="d_model=9"):
        nesting.narrow_array(np.zeros(8), ("d_model",), {"d_model": 9})
    with pytest.raises(ValueError, match=r"layers=\(0, 3\)"):
        nesting.narrow_array(np.zeros(3), ("layers",), {"layers": (0, 3)})
    with pytest.raises(ValueError, match=r"members=\(3,\) is outside the axis of 3"):
        nesting.narrow_array(np.zeros(3), ("members",), {"members": Pick(3)})


class Stored:
    """What slices as a stored array of a checkpoint does: no more than `shape` and an index of a
    slice or an array for each axis, which select independently.
    """

    def __init__(self, array):
        self._array = array
        self.shape = array.shape

    def __getitem__(self, index):
        assert len(index) == len(self.shape)
        entries = [np.arange(size)[part] for size, part in zip(self.shape, index, strict=True)]
        # A number in place of a slice or an array would have no entries to count.
        assert all(part.ndim == 1 for part in entries)
        return self._array[np.ix_(*entries)]


NORMS = ("layers", "members", "d_model")


@pytest.mark.parametrize("kind", [np.asarray, Stored])
@hypothesis.given(st.integers(0, 2), st.sets(st.integers(0, 3), min_size=1), st.integers(1, 5))
def test_a_pick_drops_its_axis_and_goes_back_to_its_place(kind, entry, layers, d_model):
    array = np.arange(1.0, 61.0).reshape(4, 3, 5)
    layers = tuple(sorted(layers))
    sizes = {"members": Pick(entry), "layers": layers, "d_model": d_model}
    part = nesting.narrow_array(kind(array), NORMS, sizes)
    expected = array[list(layers), entry, :d_model]
    np.testing.assert_array_equal(part, expected)
    assert nesting.narrow_names(NORMS, sizes) == ("layers", "d_model")

    target = np.zeros_like(array)
    nesting.place_array(part, target, NORMS, sizes)
    placed = np.zeros_like(array)
    placed[list(layers), entry, :d_model] = expected
    np.testing.assert_array_equal(target, placed)


def test_a_pick_leaves_an_axis_of_length_one_that_is_not_picked():
    array = np.ones((1, 3, 1))
    part = nesting.narrow_array(array, NORMS, {"members": Pick(1), "layers": (0,), "d_model": 1})
    assert part.shape == (1, 1)
    assert nesting.narrow_array(array[0], NORMS[1:], {"members": Pick(0)}).shape == (1,)


def test_members_have_their_own_norms_and_share_all_else():
    axes = {
        "norm": {"scale": ("members", "d_model")},
        "blocks": {"0": {"norm": {"scale": NORMS}, "w": ("layers", "d_model", "classes")}},
    }
    params = {
        "norm": {"scale": np.arange(6.0).reshape(2, 3)},
        "blocks": {
            "0": {
                "norm": {"scale": np.arange(24.0).reshape(4, 2, 3)},
                "w": np.arange(24.0).reshape(4, 3, 2),
            }
        },
    }
    for member in (0, 1):
        sub_model = nesting.SubModel((0, 3), {"d_model": 2}, member=member)
        sliced = nesting.slice_model(params, axes, sub_model)
        stack = params["blocks"]["0"]
        np.testing.assert_array_equal(sliced["norm"]["scale"], params["norm"]["scale"][member, :2])
        layers = sliced["blocks"]["0"]
        np.testing.assert_array_equal(
            layers["norm"]["scale"], stack["norm"]["scale"][[0, 3], member, :2]
        )
        np.testing.assert_array_equal(layers["w"], stack["w"][[0, 3], :2])
        assert nesting.flatten(nesting.slice_axes(axes, sub_model)) == {
            "norm/scale": ("d_model",),
            "blocks/0/norm/scale": ("layers", "d_model"),
            "blocks/0/w": ("layers", "d_model", "classes"),
        }


def test_paths_of_an_extracted_model_are_found_in_its_ta():
    assert nesting.parent_path("blocks/2/mlp/w_in") == ("blocks/0/mlp/w_in", 2)
    assert nesting.parent_path("embed/tokens") == ("embed/tokens", None)


def test_each_part_of_a_matrix_has_the_scale_of_its_smallest_model(medium):
    names = ("d_ff_granules", "d_ff", "d_model")
    scales = nesting.fan_in_scales((4, 256, 128), names, medium)
    np.testing.assert_allclose(scales[:, 0, 0], [2, 2**0.5, 1, 1], rtol=1e-6)
    assert scales.shape == (4, 1, 1)
    assert nesting.fan_in_scales((128,), ("d_model",), medium) is None
    table = nesting.fan_in_scales((5, 128), ("vocab", "d_model"), medium)
    np.testing.assert_allclose(table[0], [2**0.5] * 64 + [1] * 64, rtol=1e-6)
