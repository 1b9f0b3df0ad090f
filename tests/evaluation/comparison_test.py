"""The table of a comparison."""

import pytest

from matta_jax.evaluation import Evaluation
from matta_jax.evaluation._comparison import table_of
from matta_jax.evaluation._tasks import Paired


def evaluation(**fields):
    numbers = {"scores": {"a": 0.5, "b": 123456.7}, "intervals": {}, "truncated": {}}
    return Evaluation("ta", {}, {}, **numbers | {"examples": {"a": 8}} | fields)


@pytest.mark.parametrize(
    ("fields", "cell"),
    [
        ({"intervals": {"a": (0.25, 0.75)}}, "0.2500 to 0.7500"),
        ({"truncated": {"a": 3}}, "3 of 8 examples truncated"),
        ({"left_out": {"a": 3}}, "3 of 11 examples left out"),
    ],
)
def test_a_column_is_there_where_a_row_has_it(fields, cell):
    plain = table_of(["ta"], [evaluation()], {"a": {"guess": 0.25}}, [])
    assert "123456.7" not in plain and "1.235e+05" in plain and "0.2500" in plain
    table = table_of(["x", "y"], [evaluation(), evaluation(**fields)], {}, [])
    assert cell in table and cell not in plain
    widths = {line.count("|") for line in table.splitlines()}
    assert widths == {plain.splitlines()[0].count("|") + 1}
    [row] = [line for line in table.splitlines() if cell in line]
    assert row.split("|")[1].strip() == "a" and row.split("|")[2].strip() == "y"


def test_a_test_stands_beside_the_second_model():
    pair = Paired("a", "x", "y", 1, 2, 0.5)
    table = table_of(["x", "y"], [evaluation(), evaluation()], {}, [pair])
    [row] = [line for line in table.splitlines() if "p=0.5 against x" in line]
    assert row.split("|")[2].strip() == "y"
