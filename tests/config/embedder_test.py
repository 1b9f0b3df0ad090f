"""The section of embedders, and what no nest of them can be."""

import pytest

from matta_jax import config as c
from matta_jax import nesting
from matta_jax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__embed": 17}, "model.embed=17 must be at most model.d_model=16"),
        ({"nest__embed": 17}, "nest.embed=17 must be at most model.d_model=16"),
        ({"nest__embed": 2}, "nest.embed=2 must be at least the Student's model.embed=4"),
        (
            {"nest__d_model": 24},
            "nest.d_model=24 must be model.d_model=16 of",
        ),
        ({"nest__members": {"m": "layers=9"}}, "nest.members.m='layers=9'"),
    ],
)
def test_what_no_embedder_can_be_is_one_line(embedder, fields, words):
    with pytest.raises(UserError, match=words):
        nesting.nest_of(embedder(**fields))


def test_a_size_of_vectors_is_of_embedders_alone(tiny):
    with pytest.raises(UserError, match="nest.embed=8 is without effect on model.name='gpt'"):
        tiny(nest__embed=8)


def test_its_section_has_its_own_fields():
    section = c.EmbedderConfig(d_model=32, num_heads=4, embed=8)
    assert section.nested_sizes() == {"d_model": 32, "heads": 4, "d_ff": 512, "embed": 8}
    assert c.EmbedderConfig().nested_sizes()["embed"] == c.EmbedderConfig().d_model
