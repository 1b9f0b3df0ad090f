"""Of small arrays; what a trained scorer reaches is tested beside the scorer."""

import numpy as np
import pytest

from matta_jax import evaluate
from matta_jax.errors import UserError
from matta_jax.evaluation import _auc


def test_ties_count_at_half():
    labels = np.array([1, 1, 0, 0])
    value, (low, high) = _auc.auc(labels, np.array([2.0, 1.0, 1.0, 0.0]))
    assert value == 3.5 / 4 and 0 <= low <= value <= high <= 1


def test_a_class_of_a_single_example_says_nothing_of_others():
    labels = np.array([1, 0, 0])
    value, interval = _auc.auc(labels, np.array([2.0, 1.0, 3.0]))
    assert value == 0.5 and interval == (0.0, 1.0)


def test_a_language_model_has_no_classes(models):
    with pytest.raises(UserError, match="tasks='auc:x' is for scorers of two classes"):
        evaluate(model=models[0], tasks=["auc:x"])
