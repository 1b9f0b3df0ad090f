import numpy as np
import pytest

from matta_jax.evaluation import _tasks


def test_paired_test_is_mcnemars():
    a, b = np.array([1, 1, 1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    pair = _tasks.paired_test("t", ("a", "b"), (a, b))
    assert (pair.only_a, pair.only_b) == (5, 0) and pair.p_value == pytest.approx(2 * 0.5**5)
    assert _tasks.paired_test("t", ("a", "a"), (a, a)).p_value == 1.0


def test_models_are_compared_on_the_examples_that_both_were_scored_on():
    a = _tasks.Outcome([], np.array([True, False, True]), 3, numbers=[1, 2, 4])
    b = _tasks.Outcome([], np.array([False, True]), 2, numbers=[1, 4])
    [paired] = _tasks.all_pairs(["a", "b"], [a, b], "task")
    assert (paired.only_a, paired.only_b) == (1, 0)
