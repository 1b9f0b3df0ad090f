"""What a search writes: its rows as JSON, a table for people, and a plot."""

import json

import pytest

from matta_jax import search
from matta_jax.selection import Budget, _report, _rows


def test_a_search_is_described_in_files(run, output, one_family):
    budget = Budget(max_mb=0.04, dtype="bf16")
    result = search(str(run[1]), output, budget=budget, **one_family)
    described = json.loads((output / "search.json").read_text())
    assert described["pick"] == result.pick.spec and len(described["rows"]) == len(result.rows)
    assert {file.name for file in result.files} == {"search.json", "search.md", "search.png"}
    assert "| * |" in (output / "search.md").read_text()


def legend_and_title(tmp_path, monkeypatch, rows, budget):
    figures = []
    monkeypatch.setattr(_report, "save_figure", lambda figure, path: figures.append(figure))
    _report.plot(tmp_path / "search.png", rows, budget, ("a", "b"), timed=False)
    [legend] = figures[0].legends
    return [text.get_text() for text in legend.get_texts()], figures[0].get_suptitle()


@pytest.mark.parametrize(
    ("budget", "title"),
    [
        (Budget(max_params=1500), "max_params 1,500"),
        (Budget(max_flops_per_token=3000), "max_flops_per_token 3,000"),
        (Budget(max_mb=0.006), "max_mb 0.006"),
        (Budget(max_mb=0.003, dtype="bf16"), "max_mb 0.003"),
    ],
)
def test_the_legend_holds_all_that_is_drawn(tmp_path, monkeypatch, budget, title):
    kinds = ["student", "ta", "searched", "uniform 16", "wide-narrow-wide:1"]
    rows = [
        _rows.Row(kind, kind, 1000 + 250 * i, 0.004 + 0.001 * i, 2000 + 500 * i, loss=3.0 - i)
        for i, kind in enumerate(kinds)
    ]
    rows[3].dominated, rows[2].pick = True, True
    labels, text = legend_and_title(tmp_path, monkeypatch, rows, budget)
    for word in ("searched", "wide-narrow-wide", "uniform", "Student", "grey", "pick", "budget"):
        assert sum(word in label for label in labels) == 1, word
    assert not any("narrow-wide-narrow" in label for label in labels) and title in text


def test_a_limit_beyond_all_models_stands_in_the_title(tmp_path, monkeypatch):
    rows = [_rows.Row("student", "student", 1000, 0.004, 2000, loss=3.0)]
    labels, text = legend_and_title(tmp_path, monkeypatch, rows, Budget(max_params=1e9))
    assert not any("budget" in label for label in labels) and "max_params 1e+09" in text


def test_a_table_shows_the_ends_of_the_nest_and_what_was_verified():
    student = _rows.Row("student", "student", 1000, 0.004, 2000, loss=3.0)
    pick = _rows.Row("d_ff=16", "uniform 16", 1500, 0.006, 3000, loss=2.5, pick=True)
    pick.verified = 1.25
    unverified = _rows.Row("d_ff=32", "searched", 2000, 0.008, 4000, loss=2.0)
    text = _report.table([student, pick, unverified], ("a", "b"), engine=None)
    [*_, first, second] = (" ".join(line.split()) for line in text.splitlines())
    assert first.startswith("| | student | student | 1,000 |") and "| - |" in first
    assert second.startswith("| * | d_ff=16 | uniform 16 | 1,500 |") and "1.2500" in second
    assert "d_ff=32" not in text
