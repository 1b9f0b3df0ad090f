"""The section of Llama-like decoders: what fits together, and what is told otherwise."""

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError

SIZES = {"name": "llama", "d_model": 24, "num_heads": 4, "num_kv_heads": 2}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def section(**fields):
    return c.from_dict({"model": SIZES | fields}).model


def test_a_group_is_a_head_of_keys_with_its_queries():
    model = section()
    assert (model.kv_heads, model.queries, model.head_width) == (2, 2, 6)
    assert model.nested_sizes() == {"d_model": 24, "kv_heads": 2, "d_ff": 512}
    larger = model.resized({"kv_heads": 3, "d_ff": 8})
    assert (larger.num_heads, larger.num_kv_heads, larger.d_ff) == (6, 3, 8)
    assert section(num_kv_heads=None).kv_heads == 4


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, ()),
        ({"window": 4}, (True, True, True)),
        ({"window": 4, "window_pattern": 2}, (False, True, False)),
        ({"window": 4, "global_layers": (1,)}, (False, True, True)),
    ],
)
def test_layers_are_local_by_the_pattern_or_by_their_index(fields, flags):
    assert section(**fields).local_layers((1, 2, 3)) == flags


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_kv_heads": 3}, "model.num_kv_heads=3 must divide model.num_heads=4"),
        ({"head_dim": 5}, "model.head_dim=5 must be even"),
        ({"d_model": 12, "num_heads": 4}, "model.head_dim=3 must be even"),
        ({"rope_type": "linear"}, "has no factor, which model.rope_type='linear' needs"),
        (
            {"rope_scaling": {"factor": 2.0}},
            "model.rope_scaling.factor is not a number of model.rope_type='default'",
        ),
        (
            {"rope_type": "llama3", "rope_scaling": LLAMA3 | {"fctor": 1.0}},
            r"model.rope_scaling.fctor is not a number .*did you mean 'factor'",
        ),
        (
            {"rope_type": "linear", "rope_scaling": {"factor": 0.0}},
            "model.rope_scaling.factor=0.0 must be greater than 0",
        ),
        ({"rope_type": "dynamic"}, "model.rope_type='dynamic' must be one of"),
        ({"window_pattern": 2}, "model.window_pattern=2 is without effect"),
        ({"global_layers": (0,)}, "model.global_layers=.* is without effect"),
        (
            {"window": 4, "window_pattern": 2, "global_layers": (0,)},
            "say the same; give one of them",
        ),
        ({"gate": "relu"}, "model.gate='relu' must be one of silu, gelu_tanh"),
    ],
)
def test_what_does_not_fit_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        section(**fields)


def test_a_nest_goes_by_the_familys_own_heads():
    with pytest.raises(UserError, match=r"nest.num_heads=8 is without effect .* set nest.num_kv_"):
        c.from_dict({"model": SIZES, "nest": {"num_heads": 8}})
    with pytest.raises(UserError, match=r"nest.num_kv_heads=8 is without effect .*nest.num_heads"):
        c.from_dict({"nest": {"num_kv_heads": 8}})
    with pytest.raises(UserError, match="must be at least the Student's model.num_kv_heads=2"):
        c.from_dict({"model": SIZES, "nest": {"num_kv_heads": 1}})


def test_fields_of_another_family_say_where_they_belong():
    with pytest.raises(UserError, match=r"model.qk_norm=True is of llamas; set model.name=llama"):
        c.from_dict({"model": {"qk_norm": True}})
