"""Scores outlast a search."""

import json

import pytest

from matta_jax import search
from matta_jax.errors import UserError
from matta_jax.selection import Budget, _rows
from matta_jax.selection.scoring import InPlaceScorer, Loss


@pytest.mark.slow
def test_a_second_search_scores_nothing_again(run, output, monkeypatch, one_family):
    budget = Budget(max_params=19_000)
    first = search(str(run[1]), output, budget=budget, **one_family)

    def never(*_):
        raise AssertionError("scored again")

    monkeypatch.setattr(InPlaceScorer, "__call__", never)
    again = search(str(run[1]), output, budget=budget, **one_family)
    assert again.pick == first.pick
    # Another step is another checkpoint.
    with pytest.raises(AssertionError, match="scored again"):
        search(f"{run[1]}@3", output, budget=budget, **one_family)


@pytest.mark.slow
def test_an_interrupted_search_keeps_its_scores_and_goes_on(run, tmp_path, monkeypatch, one_family):
    real, calls = InPlaceScorer.__call__, []

    def interrupted(self, *args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return real(self, *args)

    monkeypatch.setattr(InPlaceScorer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(str(run[1]), tmp_path, **one_family)
    file = tmp_path / "scores.jsonl"
    assert len(file.read_text().splitlines()) == 3
    file.write_text(file.read_text() + '{"half a li')
    monkeypatch.setattr(InPlaceScorer, "__call__", real)
    search(str(run[1]), tmp_path, **one_family)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    scored = [(record["spec"], record["windows"]) for record in records]
    assert len(scored) == len(set(scored)) > 20


def test_larger_and_worse_is_dominated(run, output, one_family):
    result = search(str(run[1]), output, **one_family)
    for row in result.rows:
        better = [
            candidate
            for candidate in result.rows
            if candidate.parameters < row.parameters
            and candidate.flops_per_token <= row.flops_per_token
            and candidate.loss < row.loss
            and (
                row.verified is None
                or candidate.verified is None
                or candidate.verified < row.verified
            )
        ]
        assert row.dominated or not better or row.pick
    assert any(row.dominated for row in result.rows)


SCORE = {
    "checkpoint": "a",
    "corpus": "b",
    "spec": "ta",
    "windows": 2,
    "nats": 3.5,
    "num_tokens": 5,
    "num_bytes": 6,
}


def score_file(tmp_path, *lines, checkpoint="a"):
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    return _rows.ScoreFile(file, checkpoint, "b")


def test_a_score_is_read_as_it_was_written(tmp_path):
    def never():
        raise AssertionError("scored again")

    scores = score_file(tmp_path, json.dumps(SCORE))
    assert scores.get("ta", 2, never) == Loss(3.5, 5, 6)
    other = score_file(tmp_path, json.dumps(SCORE), checkpoint="c")
    assert other.get("ta", 2, lambda: Loss(1.0, 2, 3)) == Loss(1.0, 2, 3)


@pytest.mark.parametrize(
    "line",
    [
        "not a score",
        "",
        "5",
        "{}",
        "[]",
        "null",
        '{"checkpoint": "a", "corpus": "b"}',
        *(
            json.dumps(SCORE | {name: value})
            for name, value in [
                *((name, 5) for name in ("checkpoint", "corpus", "spec")),
                *((name, None) for name in SCORE),
                *((name, True) for name in SCORE),
                *((name, -1) for name in SCORE),
                *((name, "3") for name in ("nats", "windows", "num_tokens", "num_bytes")),
                *((name, 0) for name in ("windows", "num_tokens", "num_bytes")),
                ("nats", float("nan")),
                ("nats", float("inf")),
                *((name, 10**400) for name in ("nats", "windows", "num_tokens", "num_bytes")),
                ("num_tokens", 2.5),
                ("spec", ["ta"]),
            ]
        ),
    ],
)
@pytest.mark.parametrize("checkpoint", ["a", "c"])
def test_a_line_that_is_no_score_is_damage(tmp_path, line, checkpoint):
    with pytest.raises(UserError, match=r"scores.jsonl' is damaged; remove it") as error:
        score_file(tmp_path, json.dumps(SCORE), line, checkpoint=checkpoint)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nats", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ranks_nothing(tmp_path, nats):
    scores = score_file(tmp_path)
    with pytest.raises(UserError, match="cannot be ranked; search another step"):
        scores.get("ta", 2, lambda: Loss(nats, 5, 6))
    assert not (tmp_path / "scores.jsonl").read_text()


def test_a_score_that_cannot_be_written_ends_in_one_line(tmp_path):
    (tmp_path / "scores.jsonl").mkdir()
    scores = _rows.ScoreFile(tmp_path / "scores.jsonl", "a", "b")
    with pytest.raises(UserError, match=r"output=.*scores.jsonl' cannot be written"):
        scores.get("ta", 2, lambda: Loss(1.0, 2, 3))
