"""Scores outlast a search."""

import json

import pytest

from matta_jax import search
from matta_jax.errors import UserError
from matta_jax.selection import Budget
from matta_jax.selection.scoring import InPlaceScorer


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
    file.write_text("not a score\n")
    with pytest.raises(UserError, match=r"scores.jsonl' is damaged; remove it"):
        search(str(run[1]), tmp_path, **one_family)


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
                row.bits_per_byte is None
                or candidate.bits_per_byte is None
                or candidate.bits_per_byte < row.bits_per_byte
            )
        ]
        assert row.dominated or not better or row.pick
    assert any(row.dominated for row in result.rows)
