"""Random nests and sub-models, and numpy weights of their TAs."""

import dataclasses

import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig


@st.composite
def _nests(draw):
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
def _sub_models(draw, nest):
    """Sub-models whose widths, and sometimes whose heads, vary by layer."""
    layers = tuple(sorted(draw(st.sets(st.sampled_from(nest.ta.layers), min_size=1))))

    def size(axis):
        return draw(st.sampled_from(nest.allowed[axis]))

    sub_model = nesting.SubModel(layers, {"d_model": size("d_model"), "heads": size("heads")})
    sub_model = sub_model.resized(d_ff=tuple(size("d_ff") for _ in layers))
    if draw(st.booleans()):
        sub_model = sub_model.resized(heads=tuple(size("heads") for _ in layers))
    return sub_model


@st.composite
def _cases(draw, count=1):
    nest = draw(_nests())
    return nest, *(draw(_sub_models(nest)) for _ in range(count))


@pytest.fixture(scope="session")
def nests():
    """A strategy of nests."""
    return _nests()


@pytest.fixture(scope="session")
def cases():
    """`cases(count)`: a strategy of a nest and `count` of its sub-models."""
    return _cases


@dataclasses.dataclass(frozen=True)
class Weights:
    """Random numpy weights of a TA: no two entries are equal."""

    plan: models.Plan
    params: dict

    @property
    def axes(self):
        return self.plan.axes

    def slice(self, sub_model):
        return nesting.slice_model(self.params, self.axes, sub_model)


@pytest.fixture(scope="session")
def ta_weights():
    """`ta_weights(nest)`: the `Weights` of its TA, of sequences of 3."""

    def make(nest):
        sizes = nest.student.sizes
        config = ModelConfig(
            vocab_size=5, max_len=3, d_model=sizes["d_model"], num_heads=sizes["heads"], d_ff=1
        )
        plan = models.Plan(config, nest, seq_len=3)
        rng = np.random.default_rng(0)
        draw = lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype)
        return Weights(plan, jax.tree.map(draw, plan.abstract))

    return make


@pytest.fixture(scope="session")
def medium():
    """A nest along all axes."""
    return nesting.expand(
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
