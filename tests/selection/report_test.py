"""What a search writes: its rows as JSON, a table for people, and a plot."""

import json

from matta_jax import search
from matta_jax.selection import Budget, _report, _rows


def test_a_search_is_described_in_files(run, output, one_family):
    budget = Budget(max_mb=0.04, dtype="bf16")
    result = search(str(run[1]), output, budget=budget, **one_family)
    described = json.loads((output / "search.json").read_text())
    assert described["pick"] == result.pick.spec and len(described["rows"]) == len(result.rows)
    assert {file.name for file in result.files} == {"search.json", "search.md", "search.png"}
    assert "| * |" in (output / "search.md").read_text()


def test_a_table_shows_the_ends_of_the_nest_and_what_was_verified():
    student = _rows.Row("student", "student", 1000, 0.004, 2000, loss=3.0)
    pick = _rows.Row("d_ff=16", "uniform 16", 1500, 0.006, 3000, loss=2.5, pick=True)
    pick.bits_per_byte = 1.25
    unverified = _rows.Row("d_ff=32", "searched", 2000, 0.008, 4000, loss=2.0)
    text = _report.table([student, pick, unverified], timed=False)
    [*_, first, second] = (" ".join(line.split()) for line in text.splitlines())
    assert first.startswith("| | student | student | 1,000 |") and "| - |" in first
    assert second.startswith("| * | d_ff=16 | uniform 16 | 1,500 |") and "1.2500" in second
    assert "d_ff=32" not in text
