"""A nest: what lies in it, and what it refuses."""

import hypothesis
import hypothesis.strategies as st
import pytest

from matta_jax import nesting
from matta_jax.errors import UserError


@hypothesis.given(st.data())
def test_the_student_lies_in_its_ta(nests, data):
    nest = data.draw(nests)
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


@hypothesis.given(st.data())
def test_granules_divide_every_size(cases, data):
    nest, sub_model = data.draw(cases())
    assert set(nest.granules) == {"heads", "d_ff"}
    nest.check(sub_model)
    for axis, granule in nest.granules.items():
        assert granule == nest.granule(axis)
        assert all(size % granule == 0 for size in sub_model.along(axis))


@hypothesis.given(st.data())
def test_each_layer_is_an_option(cases, data):
    nest, sub_model = data.draw(cases())
    hypothesis.assume(set(sub_model.per_layer) <= {"d_ff"})
    for layer in nest.ta.layers:
        option = nest.option_of(sub_model, layer)
        sizes = sub_model.sizes_in(layer)
        if sizes is None:
            assert option is None
        else:
            assert nest.layer_options[option] == {"d_ff": sizes["d_ff"]}


def test_options_of_several_axes_are_all_their_combinations(medium):
    nest = nesting.Nest(medium.members, medium.allowed, by_layer=("heads", "d_ff"))
    options = [(option["heads"], option["d_ff"]) for option in nest.layer_options]
    assert options == [(4, 256), (4, 512), (4, 1024), (8, 256), (8, 512), (8, 1024)]
    sub_model = nest.ta.resized(heads=(4,) + (8,) * 23, d_ff=512)
    assert [nest.option_of(sub_model, layer) for layer in (0, 1)] == [1, 4]


def test_layers_that_differ_in_another_axis_are_no_options(medium):
    varied = medium.ta.resized(heads=(4,) + (8,) * 23)
    with pytest.raises(ValueError, match=r"\['heads'\] differ between layers"):
        medium.option_of(varied, 0)


def test_mixes_vary_an_axis_by_layer(medium):
    assert medium.mix([512] * 24) == medium.ta.resized(d_ff=512)
    heads = (4, 8) * 12
    assert medium.mix(heads, axis="heads").along("heads") == heads


def test_members_stand_beside_student_and_ta(medium):
    small = medium.student.resized(d_ff=512)
    nest = nesting.Nest(medium.members | {"small": small}, medium.allowed)
    assert nest.others == {"small": small} and medium.others == {}
    assert (nest.student, nest.ta) == (medium.student, medium.ta)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"heads": (4,) * 23 + (5,)}, "num_heads=5 is outside the nest; allowed: 4, 8"),
        ({"d_ff": (256,) * 23 + (300,)}, "d_ff=300 is outside the nest; allowed: 256, 512, 1024"),
        ({"d_model": 96}, "d_model=96 is outside the nest; allowed: 64, 128"),
    ],
)
def test_sizes_outside_are_refused_by_layer_too(medium, sizes, words):
    with pytest.raises(UserError, match=words):
        medium.check(medium.ta.resized(**sizes))


@pytest.mark.parametrize("layers", [(), (24,), (3, 2)])
def test_layers_outside_are_refused(medium, layers):
    with pytest.raises(UserError, match="layers="):
        medium.check(medium.ta.with_layers(layers))
