"""The type, range and meaning of a field."""

import dataclasses
import re

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError


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
            ["optimizer.learning_rate", "a finite number"],
        ),
        ({"optimizer": {"name": "adamv"}}, ["optimizer.name='adamv'", "did you mean 'adamw'"]),
        ({"objective": {"temperature": 0}}, ["objective.temperature=0.0", "at least 0.05"]),
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
            ["objective.member_distill_weights.small=nan", "a finite number"],
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


NUMBERS = [
    (f"{section}.{declared.name}", declared)
    for section, cls in c.SECTIONS.items()
    for part in ([cls, c.ScorerConfig] if section == "model" else [cls])
    for declared in dataclasses.fields(part)
    if any(word in str(declared.type) for word in ("int", "float"))
]


@pytest.mark.parametrize(("name", "declared"), NUMBERS, ids=lambda value: str(value)[:40])
def test_each_number_has_bounds_and_huge_ones_end_at_once(name, declared):
    rule = declared.metadata
    assert rule["minimum"] is not None or rule["above"] is not None, f"{name} has no least value"
    assert rule["maximum"] is not None, f"{name} has no largest value"

    section, _, field = name.partition(".")
    family = {"name": "scorer"} if field in ("num_classes", "num_dense", "categories") else {}
    for number in (10**12, 10**5000, float("inf"), float("-inf"), float("nan"), -(2**70)):
        value = number
        if "tuple" in str(declared.type):
            value = [number]
        if "Mapping" in str(declared.type):
            value = {"small": number}
        with pytest.raises(UserError, match=re.escape(name)) as error:
            c.from_dict({section: {field: value} | family})
        assert len(str(error.value)) < 200


FLOATS = [(name, declared) for name, declared in NUMBERS if "float" in str(declared.type)]


@pytest.mark.parametrize(("name", "declared"), FLOATS, ids=lambda value: str(value)[:40])
def test_no_float_is_so_small_that_float32_loses_it(name, declared):
    rule = declared.metadata
    least = rule["smallest"] or rule["minimum"]
    assert 1e-30 <= least <= 1.0

    section, _, field = name.partition(".")
    is_mapping = "Mapping" in str(declared.type)
    for number in (5e-324, 1e-300, 1e-40, least * 0.99):
        values = {field: {"small": number} if is_mapping else number}
        with pytest.raises(UserError, match=rf"{re.escape(name)}.* at least {least}"):
            c.from_dict({section: values})

    # The bounds themselves are in the range, and 0 where it begins there.
    zero = [0.0] if rule["minimum"] == 0 else []
    for number in (*zero, least, rule["maximum"]):
        values = {field: {"small": number} if is_mapping else number}
        assert getattr(c.SECTIONS[section](**values), field) == values[field]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.seed", 2**32),
        ("objective.temperature", 1e-300),
        ("objective.temperature", 1e4),
        ("teacher.temperature", 21.0),
        ("optimizer.b2", 0.99999999),
        ("optimizer.b1", 0.9999999999),
        ("optimizer.eps", 1e-300),
        ("shampoo.beta2", 0.99999999),
        ("objective.jensen_shannon_beta", 0.9999),
        ("model.dropout", 1 - 1e-9),
        ("data.eval_fraction", 1 - 1e-9),
        ("mesh.data", 10**9),
        ("model.d_model", 1000000000001),
    ],
)
def test_what_float32_or_a_machine_takes_for_another_number_is_refused(name, value):
    section, _, field = name.partition(".")
    with pytest.raises(UserError, match=re.escape(name)):
        c.from_dict({section: {field: value}})
