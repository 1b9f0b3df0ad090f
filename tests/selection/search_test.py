"""The best sub-model within a budget is found, and extracted."""

import json

import numpy as np
import pytest

from matta_jax import elastic, search
from matta_jax.errors import UnsavedError, UserError
from matta_jax.selection import Budget, Workload, _report
from matta_jax.selection import _search as search_lib

COUNTS = ("num_windows", "verify", "evaluations")


@pytest.mark.slow
def test_the_methods_find_what_exhaustion_finds(run, output, tmp_path, one_family):
    budget = Budget(max_params=19_000, max_flops_per_token=1e9)
    picks = {}
    for method in ("exhaustive", "additive", "evolutionary"):
        result = search(
            str(run[1]), output, budget=budget, method=method, evaluations=60, **one_family
        )
        picks[method] = result.pick.verified
        verified = [row for row in result.rows if row.verified is not None]
        assert all(row.parameters <= 19_000 for row in verified)
    assert picks["evolutionary"] == picks["exhaustive"]
    # It predicts; its candidates are verified.
    assert picks["additive"] <= picks["exhaustive"] * 1.01


@pytest.mark.slow
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
        assert score["value"] == row.verified
        assert not row.dominated


@pytest.mark.slow
def test_models_may_be_scored_in_another_type_and_their_scores_are_apart(run, tmp_path, one_family):
    results = {}
    for dtype in ("float32", "bfloat16"):
        settings = one_family | {"compute_dtype": dtype, "method": "evolutionary"}
        results[dtype] = search(str(run[1]), tmp_path / "s", evaluations=2, verify=1, **settings)
    exact, rounded = ({row.spec: row.loss for row in result.rows} for result in results.values())
    for spec in ("student", "ta"):
        assert rounded[spec] != exact[spec]
        assert rounded[spec] == pytest.approx(exact[spec], rel=1e-2)
    document = json.loads((tmp_path / "s" / "search.json").read_text())
    assert document["compute_dtype"] == "bfloat16" and "Scored in bfloat16." in document["notes"]
    assert not any("Scored in" in note for note in results["float32"].notes)
    # Nor do later searches take scores of one type for those of another.
    again = search(str(run[1]), tmp_path / "s", evaluations=2, verify=1, **settings)
    assert {row.spec: row.loss for row in again.rows} == rounded
    scores = (tmp_path / "s" / "scores.jsonl").read_text().splitlines()
    assert len({json.loads(line)["checkpoint"] for line in scores}) == 2
    with pytest.raises(UserError, match="compute_dtype='fp16' must be one of float32, bfloat16"):
        search(str(run[1]), tmp_path / "s", **one_family | {"compute_dtype": "fp16"})


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
        *(({name: 0}, f"{name}=0 must be at least 1") for name in COUNTS),
        *(({name: -1}, f"{name}=-1 must be at least 0") for name in ("seed", "extract_best")),
        *(
            ({name: value}, f"{name}={value} must be a whole number")
            for name in (*COUNTS, "seed", "extract_best")
            for value in (1.5, float("nan"), True, None)
        ),
        *(
            ({name: value}, f"{name}=.* must be at most")
            for name in (*COUNTS, "seed", "extract_best")
            for value in (2**32, 10**300, 10**5000)
        ),
        ({"layers": 3.0}, "layers=3.0 is outside the nest"),
        ({"num_heads": -1}, "num_heads=-1 is outside the nest; allowed: 2, 3"),
        ({"workload": Workload(length=33)}, "latency_length=33 must be at most model.max_len=32"),
        ({"corpus": "/nowhere/*.txt"}, "matches no file"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, fields, words, one_family):
    with pytest.raises(UserError, match=words) as error:
        search(str(run[1]), tmp_path / "out", **(one_family | fields))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_methods_are_what_the_flag_offers():
    assert search_lib.METHODS == ("auto", "exhaustive", "additive", "evolutionary")


@pytest.mark.parametrize("place", ["", "3", "deep/er"])
def test_the_checkpoints_of_a_run_are_no_place_for_a_search(run, place, one_family):
    with pytest.raises(UserError, match="is in the checkpoints of the run .* name another"):
        search(str(run[1]), run[1] / "checkpoints" / place, **one_family)


def test_a_file_is_no_folder(run, tmp_path, one_family):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"output=.*file' is a file; name a folder"):
        search(str(run[1]), tmp_path / "file", **one_family)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_space_that_no_one_would_wait_for_is_refused(run, tmp_path, monkeypatch, one_family):
    monkeypatch.setattr(search_lib, "_TOO_MANY", 5)
    with pytest.raises(UserError, match="would score more than 5 models; fix layers"):
        search(str(run[1]), tmp_path / "out", method="exhaustive", **one_family)


@pytest.mark.parametrize("name", ["search.json", "search.md", "search.png"])
def test_what_cannot_be_written_is_told_with_the_table(run, output, name, monkeypatch, one_family):
    def full(path, *_, **__):
        if path.name == name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(search_lib.storage, "replace_text", full)
    monkeypatch.setattr(_report, "save_figure", lambda figure, path: full(path) or path)
    with pytest.raises(UnsavedError, match=r"cannot be written \(No space left") as error:
        search(str(run[1]), output, **one_family)
    assert "bits/byte" in error.value.text and "\n" not in str(error.value)
