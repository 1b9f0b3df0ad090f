"""The best sub-model within a budget is found, and extracted."""

import numpy as np
import pytest

from matta_jax import elastic, search
from matta_jax.errors import UserError
from matta_jax.selection import Budget
from matta_jax.selection import _search as search_lib


def test_the_methods_find_what_exhaustion_finds(run, output, tmp_path, one_family):
    budget = Budget(max_params=19_000, max_flops_per_token=1e9)
    picks = {}
    for method in ("exhaustive", "additive", "evolutionary"):
        result = search(
            str(run[1]), output, budget=budget, method=method, evaluations=60, **one_family
        )
        picks[method] = result.pick.bits_per_byte
        verified = [row for row in result.rows if row.bits_per_byte is not None]
        assert all(row.parameters <= 19_000 for row in verified)
    assert picks["evolutionary"] == picks["exhaustive"]
    # It predicts; its candidates are verified.
    assert picks["additive"] <= picks["exhaustive"] * 1.01


def test_what_is_extracted_keeps_the_budget_and_carries_its_score(run, output, one_family):
    budget = Budget(max_mb=0.04, dtype="bf16")
    result = search(str(run[1]), output, budget=budget, extract_best=2, **one_family)
    assert 1 <= len(result.extracted) <= 2 and result.extracted[0].spec == result.pick.spec
    for extracted in result.extracted:
        package = elastic.verify(extracted.path)
        written = sum(
            np.prod(array.shape) * array.dtype.itemsize for array in package.stored.values()
        )
        assert written == package.counts.bytes <= 40_000
        [score] = package.manifest["scores"]
        row = next(row for row in result.rows if row.spec == extracted.spec)
        assert score["task"] == "bits_per_byte:held_out"
        assert score["value"] == row.bits_per_byte
        assert not row.dominated


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"budget": Budget(max_params=100)},
            r"max_params=100 is below the smallest model of the space \(16,872\); raise it",
        ),
        ({"budget": Budget(max_mb=0.001)}, "max_mb=0.001 is below the smallest model"),
        ({"layers": 7}, "layers=7 is outside the nest; allowed: 2, 3"),
        ({"d_model": 20}, "d_model=20 is outside the nest; allowed: 16, 24"),
        ({"method": "additiv"}, "did you mean 'additive'"),
        ({"verify": 0}, "verify=0 must be at least 1"),
        ({"corpus": "/nowhere/*.txt"}, "matches no file"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, fields, words, one_family):
    with pytest.raises(UserError, match=words) as error:
        search(str(run[1]), tmp_path / "out", **(one_family | fields))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_methods_are_what_the_flag_offers():
    assert search_lib.METHODS == ("auto", "exhaustive", "additive", "evolutionary")
