"""The section of vision transformers, and what none can be."""

import dataclasses

import pytest

from matta_jax import config as c
from matta_jax import models
from matta_jax.errors import UserError

THINKING = {"model__thinking_heads": [2], "nest__thoughts": 1}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__patch_size": 3}, "model.patch_size=3 must divide model.image_size=8"),
        ({"model__image_mean": [0.5, 0.5]}, "must hold one number, or one for each of"),
        ({"model__image_std": ["a"]}, "must be a tuple of numbers such as"),
        ({"model__image_std": [0.0]}, "model.image_std=0.0 must be greater than 0"),
        ({"model__image_classes": 1}, "model.image_classes=1 must be at least 2"),
        ({"model__thoughts": 1}, "model.thoughts=1 must be at most the 0 earlier passes"),
        ({"nest__thoughts": 1}, "nest.thoughts=1 is without effect without earlier passes"),
        ({**THINKING, "nest__thoughts": 2}, "nest.thoughts=2 must be at most the 1 earlier"),
        ({**THINKING, "model__thoughts": 1, "nest__thoughts": 0}, "must be at least the Student's"),
        ({**THINKING, "model__thinking_d_ff": [8, 8]}, "must have a size for each of"),
        ({"model__thinking_heads": [1], "model__d_ff": 15}, "1 of the Student's 2 heads are no"),
    ],
)
def test_what_no_classifier_can_be_is_one_line(vit, fields, words):
    with pytest.raises(UserError, match=words):
        vit(**fields)


def test_earlier_passes_are_of_the_students_proportions():
    section = c.VitConfig(num_heads=4, d_model=32, d_ff=100, thinking_heads=(1, 2))
    assert [dict(sizes) for sizes in section.earlier_sizes()] == [
        {"heads": 1, "d_model": 8, "d_ff": 25},
        {"heads": 2, "d_model": 16, "d_ff": 50},
    ]
    told = dataclasses.replace(section, thinking_d_model=(8, 24), thinking_d_ff=(7, 9))
    assert [sizes["d_ff"] for sizes in told.earlier_sizes()] == [7, 9]
    assert "thoughts" not in c.VitConfig().nested_sizes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__thinking_heads": [4]}, "an earlier pass has num_heads=4, and the TA 3"),
        ({"model__thinking_d_ff": [32]}, "an earlier pass has d_ff=32, and the nest's smallest"),
    ],
)
def test_no_earlier_pass_is_larger_than_what_runs_it(vit, fields, words):
    with pytest.raises(UserError, match=words):
        models.plan_of(vit(**THINKING | fields))


def test_positions_are_the_patches_and_the_class_token():
    assert c.VitConfig(image_size=32, patch_size=8).num_positions == 17
    assert c.VitConfig(image_size=32, patch_size=8, image_pooling="mean").num_positions == 16
    # Whole numbers are numbers too.
    assert c.VitConfig(image_std=(1,)).image_std == (1.0,)


def test_a_run_counts_positions_and_not_tokens(vit, tiny):
    assert vit().seq_len == 5 and tiny().seq_len == tiny().data.seq_len
