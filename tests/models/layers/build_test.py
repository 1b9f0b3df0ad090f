"""Fresh weights, of shapes and scales that their axes tell."""

import numpy as np
import pytest
from flax import nnx

from matta_jax.models.layers import Build

SIZES = {
    "vocab": 50,
    "d_model": 100,
    "d_ff_granules": 4,
    "d_ff": 25,
    "heads_granules": 2,
    "heads": 3,
    "head_dim": 5,
}


def make(depth=8, **sizes):
    return Build(SIZES | sizes, depth=depth, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("names", "fan_in"),
    [
        (("d_ff_granules", "d_model", "d_ff"), 100),
        (("d_ff_granules", "d_ff", "d_model"), 100),
        (("heads_granules", "heads", "head_dim", "d_model"), 30),
        (("vocab", "d_model"), 100),
    ],
)
def test_a_matrix_has_the_variance_of_its_inputs(names, fan_in):
    weight = make().weight(*names, scale=0.5)
    assert weight[...].shape == tuple(SIZES[name] for name in names)
    assert weight.get_metadata()["axes"] == names
    assert float(weight[...].std()) == pytest.approx(0.5 / fan_in**0.5, rel=0.05)


def test_a_bias_is_zero():
    bias = make().weight("d_ff_granules", "d_ff")
    assert bias[...].shape == (4, 25) and not bias[...].any()
    assert bias.get_metadata()["axes"] == ("d_ff_granules", "d_ff")


def test_members_own_a_constant_where_there_are_several():
    scale = make(members=3).constant(2.0, "members", "d_model")
    assert scale.get_metadata()["axes"] == ("members", "d_model")
    np.testing.assert_array_equal(scale[...], np.full((3, 100), 2))
    plain = make().constant(2.0, "members", "d_model")
    assert plain.get_metadata()["axes"] == ("d_model",)
    np.testing.assert_array_equal(plain[...], np.full(100, 2))


def test_branches_shrink_with_depth():
    assert make(depth=8).residual_scale == pytest.approx(0.25 / 4)
    assert make(depth=2).residual_scale == pytest.approx(0.25 / 2)
