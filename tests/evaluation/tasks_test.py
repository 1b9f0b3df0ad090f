import numpy as np
import pytest

from matta_jax.evaluation import _tasks


def test_paired_test_is_mcnemars():
    a, b = np.array([1, 1, 1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    pair = _tasks.paired_test("t", ("a", "b"), (a, b))
    assert (pair.only_a, pair.only_b) == (5, 0) and pair.p_value == pytest.approx(2 * 0.5**5)
    assert _tasks.paired_test("t", ("a", "a"), (a, a)).p_value == 1.0
