"""The section of vision transformers, and what none can be."""

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__patch_size": 3}, "model.patch_size=3 must divide model.image_size=8"),
        ({"model__image_mean": [0.5, 0.5]}, "must hold one number, or one for each of"),
        ({"model__image_std": ["a"]}, "must be a tuple of numbers such as"),
        ({"model__image_std": [0.0]}, "model.image_std=0.0 must be greater than 0"),
        ({"model__image_classes": 1}, "model.image_classes=1 must be at least 2"),
    ],
)
def test_what_no_classifier_can_be_is_one_line(vit, fields, words):
    with pytest.raises(UserError, match=words):
        vit(**fields)


def test_positions_are_the_patches_and_the_class_token():
    assert c.VitConfig(image_size=32, patch_size=8).num_positions == 17
    assert c.VitConfig(image_size=32, patch_size=8, image_pooling="mean").num_positions == 16
    # Whole numbers are numbers too.
    assert c.VitConfig(image_std=(1,)).image_std == (1.0,)


def test_a_run_counts_positions_and_not_tokens(vit, tiny):
    assert vit().seq_len == 5 and tiny().seq_len == tiny().data.seq_len
