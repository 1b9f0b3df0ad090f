"""Of small arrays; what a trained scorer reaches is tested beside the scorer."""

from types import SimpleNamespace

import numpy as np
import pytest

from matta_jax import evaluate
from matta_jax.data import ExampleSet
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


def test_examples_without_tokens_are_left_out_unless_they_have_features():
    words = [("a", (), [1]), ("", (), []), ("", (1.0,), []), ("b", (), [2])]
    rows = [SimpleNamespace(text=text, dense=dense, categorical=()) for text, dense, _ in words]
    ids = [np.array(row_ids) for _, _, row_ids in words]
    examples = ExampleSet(rows, ids, 4, np.array([]), 0, 0, "x")
    scored, left_out = _auc._with_tokens(examples, "tasks='auc:x'")
    assert left_out == 1 and [row.text for row in scored.examples] == ["a", "", "b"]
    with pytest.raises(UserError, match="no example can be scored: example 1"):
        _auc._with_tokens(examples.part(1, 2), "tasks='auc:x'")
