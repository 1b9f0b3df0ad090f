import math

import pytest


def test_an_interval_is_students_t(load):
    statistics = load("lab.statistics")
    mean, half = statistics.interval([1.0, 2.0, 3.0])
    assert mean == 2 and math.isclose(half, 4.302653 / math.sqrt(3), rel_tol=1e-6)
    assert statistics.format_interval([1.0, 2.0, 3.0]) == "2.0000 ± 2.4841"
    signed = statistics.format_interval([1.0, 2.0, 3.0], signed=True)
    assert signed == "+2.0000 (-0.4841 to +4.4841)"


def test_values_are_in_the_order_of_the_seeds(load):
    statistics = load("lab.statistics")
    rows = [
        {"condition": condition, "seed": seed, "student": value}
        for condition, seed, value in (("a", 2, 7.0), ("b", 0, 9.0), ("a", 0, 1.0), ("a", 1, 3.0))
    ]
    assert statistics.seed_values(rows, "a", "student") == [1.0, 3.0, 7.0]
    assert statistics.differences([3.0, 1.0], [1.0, 2.0]) == [2.0, -1.0]
    with pytest.raises(ValueError):
        statistics.differences([3.0], [1.0, 2.0])
