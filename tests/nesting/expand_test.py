"""The nest that a run's config describes."""

import pytest

from matta_jax import config as c
from matta_jax import nesting
from matta_jax.errors import UserError

MODEL = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 16}
NEST = {"num_layers": 3, "d_model": 24, "num_heads": 3, "d_ff": 48, "widths": [16, 32, 48]}


def nest_of(**fields):
    return nesting.nest_of(c.from_dict({"model": MODEL, "nest": NEST | fields}))


def test_a_ta_has_the_students_sizes_where_none_are_given():
    nest = nesting.expand(**MODEL)
    assert nest.student == nest.ta == nesting.SubModel((0, 1), nest.ta.sizes)
    assert nest.allowed == {"d_model": (16,), "heads": (2,), "d_ff": (16,)}
    assert nesting.nest_of(c.from_dict({"model": MODEL})) == nest


def test_a_config_and_its_sizes_make_the_same_nest():
    nest = nest_of()
    assert nest == nesting.expand(
        **MODEL, ta_num_layers=3, ta_d_model=24, ta_num_heads=3, ta_d_ff=48, widths=(16, 32, 48)
    )
    assert nest.allowed == {"d_model": (16, 24), "heads": (2, 3), "d_ff": (16, 32, 48)}
    assert nest.student == nesting.SubModel((0, 1), {"d_model": 16, "heads": 2, "d_ff": 16})
    assert nest_of(student_layers="spread").student.layers == (0, 2)


def test_widths_of_any_axis():
    sizes = {"d_model": 16, "heads": 1}
    nest = nesting.make_nest(
        sizes,
        {"d_model": 16, "heads": 4},
        num_layers=1,
        ta_layers=1,
        widths={"heads": (1, 2, 4)},
    )
    assert nest.allowed == {"d_model": (16,), "heads": (1, 2, 4)}


def test_members_bring_their_sizes():
    nest = nest_of(members={"small": "layers=1;d_model=20;num_heads=1", "wide": "d_ff=40,48,8"})
    assert nest.allowed == {
        "d_model": (16, 20, 24),
        "heads": (1, 2, 3),
        "d_ff": (8, 16, 32, 40, 48),
    }
    assert nest.others == {
        "small": nesting.SubModel((0,), {"d_model": 20, "heads": 1, "d_ff": 48}),
        "wide": nest.mix([40, 48, 8]),
    }
    assert nest.granules == {"heads": 1, "d_ff": 8}
    for name, member in nest.others.items():
        nest.check(member)
        assert nesting.parse_spec(name, nest) == member
        assert nesting.format_spec(member, nest) == name


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("d_ff=64", "from 1 to the TA's 48"),
        ("num_heads=2,4,3", "heads=4 must be from 1 to the TA's 3"),
        ("d_model=0", "from 1 to the TA's 24"),
        ("layers=4", "allowed: 1 to 3"),
        ("studnt", "did you mean 'student'"),
    ],
)
def test_members_outside_the_ta_are_refused(spec, words):
    with pytest.raises(UserError, match=f"nest.members.small='{spec}': .*{words}"):
        nest_of(members={"small": spec})
