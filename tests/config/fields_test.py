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


STRINGS = [
    (f"{section}.{declared.name}", declared)
    for section, cls in c.SECTIONS.items()
    for declared in dataclasses.fields(cls)
    if "str" in str(declared.type)
]
NOT_PRINTED = ("\0", "\x1b[2J", "\r", "\x85", "\u2028", "\udcff", "\x7f")


def refuse_string(name, declared, text):
    """The line about a string of a field, or of an item of it."""
    section, _, field = name.partition(".")
    value = {"small": text} if "Mapping" in str(declared.type) else text
    with pytest.raises(UserError, match=re.escape(name)) as error:
        c.from_dict({section: {field: value}})
    assert str(error.value).isprintable() and len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.few(10)
@pytest.mark.parametrize(("name", "declared"), STRINGS, ids=lambda value: str(value)[:40])
def test_each_string_is_printed_in_one_line(name, declared):
    rule = declared.metadata
    for character in NOT_PRINTED:
        line = refuse_string(name, declared, f"text:a{character}b")
        assert repr(character)[1:-1] in line
    assert len(refuse_string(name, declared, "a" * 10**6)) < 300
    if not rule["is_prose"]:
        for text in ("", "  ", "a\nb", "a\tb"):
            refuse_string(name, declared, text)


def test_a_prompt_may_be_empty_and_of_several_lines():
    for text in ("", "Q: why?\n\tA:"):
        assert c.TrainConfig(sample_prompt=text).sample_prompt == text


HUGE = 10**5000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": {"num_dense": HUGE}}, ["model.num_dense=a number of thousands of digits"]),
        ({"model": {"name": HUGE}}, ["model.name=a number of thousands of digits", "gpt, scorer"]),
        ({"model": {"name": [1]}}, ["model.name=[1]", "gpt, scorer"]),
        ({"nest": {"widths": HUGE}}, ["nest.widths=a number", "whole numbers"]),
        ({"nest": {"widths": [0.5, HUGE]}}, ["nest.widths=a number", "whole numbers"]),
        ({"nest": {"widths": range(1, 9)}}, ["nest.widths=range(1, 9)", "whole numbers"]),
        ({"nest": {"widths": [*range(10**6)]}}, ["nest.widths has 1000000 items", "at most 1024"]),
        ({"nest": {"d_ff": 900, "widths": [*range(1, 900)]}}, ["nest.widths=(1, 2,", "must run"]),
        ({"nest": {"d_ff": 513, "widths": [512] * 512 + [513]}}, ["nest.widths=(512,", "rise"]),
        ({"nest": {"members": HUGE}}, ["nest.members=a number", "map names to values"]),
        ({"nest": {"members": {HUGE: "ta"}}}, ["nest.members=a number", "map names to values"]),
        ({"nest": {"members": {f"a{i}": "ta" for i in range(2000)}}}, ["has 2000 items"]),
        ({"objective": {"member_weights": {"a\nb": HUGE}}}, ["member_weights.'a\\nb'=inf"]),
        (HUGE, ["config a number of thousands of digits must hold sections"]),
        ([], ["config [] must hold sections"]),
        ({HUGE: {}}, ["unknown config section a number"]),
        ({"a\nb" * 99: {}}, ["unknown config section 'a\\nb"]),
        ({"model": HUGE}, ["config section model=a number"]),
        ({"model": {HUGE: 1}}, ["unknown config field"]),
        ({"model": {"a\n" * 99: 1}}, ["unknown config field 'model.a\\n"]),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, list) else "",
)
def test_what_is_huge_or_no_name_is_shown_short(assert_one_line, values, words):
    assert_one_line(values, words)
