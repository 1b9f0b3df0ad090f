"""The type, range and meaning of a field."""

import dataclasses

import pytest

from matta_jax import config as c


def test_every_field_says_what_it_means():
    sections = {*c.SECTIONS.values(), *c.model_sections().values()}
    for cls in sections:
        for field in dataclasses.fields(cls):
            assert field.metadata["meaning"].endswith((".", ")")), field.name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"optimizer": {"learning_rate": -1.0}},
            ["optimizer.learning_rate=-1.0", "greater than 0"],
        ),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            ["optimizer.learning_rate", "greater than 0"],
        ),
        ({"optimizer": {"name": "adamv"}}, ["optimizer.name='adamv'", "did you mean 'adamw'"]),
        ({"objective": {"temperature": 0}}, ["objective.temperature=0.0", "greater than 0"]),
        ({"model": {"num_layers": 2.5}}, ["model.num_layers=2.5", "whole number"]),
        ({"model": {"num_layers": True}}, ["model.num_layers=True", "whole number"]),
        ({"nest": {"widths": (0.5,)}}, ["nest.widths=(0.5,)", "whole numbers"]),
    ],
)
def test_a_wrong_type_or_range_ends_in_one_line(assert_one_line, values, words):
    assert_one_line(values, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nest": {"members": ["small"]}}, ["nest.members=['small']", "map names to values"]),
        ({"nest": {"members": {3: "ta"}}}, ["nest.members={3: 'ta'}", "map names to values"]),
        ({"nest": {"members": {"small": 3}}}, ["nest.members.small=3", "must be a string"]),
        (
            {"objective": {"member_weights": {"small": "much"}}},
            ["objective.member_weights.small='much'", "must be a number"],
        ),
        (
            {"objective": {"member_weights": {"small": -1}}},
            ["objective.member_weights.small=-1.0", "at least 0"],
        ),
        (
            {"objective": {"member_distill_weights": {"small": float("nan")}}},
            ["objective.member_distill_weights.small=nan", "at least 0"],
        ),
    ],
)
def test_each_item_of_a_mapping_is_checked(assert_one_line, values, words):
    assert_one_line(values, words)


def test_a_mapping_is_frozen_and_of_the_type_of_its_items():
    objective = c.ObjectiveConfig(member_weights={"small": 1})
    assert type(objective.member_weights["small"]) is float
    with pytest.raises(TypeError):
        objective.member_weights["small"] = 2.0
    assert hash(objective) == hash(c.ObjectiveConfig(member_weights={"small": 1.0}))
