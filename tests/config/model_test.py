"""The Student's section of each family, and its nest's."""

import pytest

from matta_jax import config as c
from matta_jax import errors
from matta_jax.errors import UserError


def test_heads_that_do_not_divide_d_model_are_named(assert_one_line):
    words = ["model.num_heads=5", "model.d_model=128", "4"]
    assert_one_line({"model": {"num_heads": 5}}, words)


def test_head_dim_is_what_the_heads_share_unless_it_is_given(assert_one_line):
    assert c.ModelConfig(d_model=96, num_heads=4).head_width == 24
    # With a width of its own, heads need not fill the residual stream.
    section = c.ModelConfig(d_model=96, num_heads=5, head_dim=16)
    assert section.head_width == 16 and section.head_dim == 16
    assert_one_line({"model": {"head_dim": 0}}, ["model.head_dim=0", "at least 1"])
    assert_one_line({"model": {"head_dim": 8.0}}, ["model.head_dim=8.0", "whole number"])


def test_a_family_has_its_own_section():
    with pytest.raises(UserError, match="model.name='scorer' is described by ScorerConfig, not"):
        c.ModelConfig(name="scorer")
    with pytest.raises(UserError, match="model.name='gpt' is described by ModelConfig, not"):
        c.ScorerConfig(name="gpt")
    with pytest.raises(UserError, match="model.name='gpd' .*did you mean 'gpt'"):
        c.ModelConfig(name="gpd")
    scorer = c.from_dict({"model": {"name": "scorer", "num_dense": 2}}).model
    assert scorer == c.ScorerConfig(num_dense=2) and scorer.reads_examples
    assert type(c.Config().model) is c.ModelConfig and not c.Config().model.reads_examples


def test_fields_of_another_family_are_named(assert_one_line):
    line = "model.num_dense=2 is of scorers; set model.name=scorer, or leave it out"
    assert_one_line({"model": {"num_dense": 2}}, [line])
    assert_one_line({"model": {"name": "gpt", "num_dense": 2}}, [line])
    assert_one_line({"model": {"num_classes": 3}}, ["model.num_classes=3 is of scorers"])
    assert_one_line({"model": {"categories": [3]}}, ["model.categories=[3] is of scorers"])


def test_a_name_has_one_section():
    with pytest.raises(ValueError, match="model.name='gpt' is described by ModelConfig"):
        c.register_model("gpt", c.ScorerConfig)
    c.register_model("gpt", c.ModelConfig)
    assert set(c.model_sections()) == {"embedder", "gpt", "llama", "scorer", "vit"}


@pytest.mark.parametrize("name", ["student", "ta", "mix_0", "mix_", "a b", "a/b", "2nd", ""])
def test_reserved_and_odd_names_of_members_are_refused(assert_one_line, name):
    words = [f"nest.members.{name}: a member's name must be", "rename it"]
    assert_one_line({"nest": {"members": {name: "layers=1"}}}, words)


@pytest.mark.parametrize("name", ["a\nb", "\0", "a" * 61, "\u2028" * 99])
def test_odd_names_of_members_are_shown_in_one_line(assert_one_line, name):
    words = [f"nest.members.{errors.shorten(name)}: a member's name must be", "rename it"]
    assert_one_line({"nest": {"members": {name: "layers=1"}}}, words)


def test_other_words_name_members():
    members = {"middle": "layers=1", "mixed": "layers=2", "tall_2": "d_ff=512"}
    assert c.NestConfig(members=members).members == members


def test_what_is_kept_is_a_policy_and_names(assert_one_line):
    model = c.ModelConfig(remat="full+qkv+attention")
    assert model.remat_policy == "full" and model.remat_names == ("qkv", "attention")
    assert c.ModelConfig().remat_names == ()
    for remat, words in (
        ("dot", ["model.remat='dot'", "must be one of dots, ta", "did you mean 'dots'"]),
        ("dots+atention", ["'atention' must be one of qkv", "did you mean 'attention'"]),
        ("none+qkv", ["model.remat='none+qkv'", "full+qkv"]),
    ):
        assert_one_line({"model": {"remat": remat}}, words)
