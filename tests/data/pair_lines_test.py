"""Lines of pairs: three forms that are read alike, and what is refused."""

import dataclasses
import json

import pytest

from matta_jax import data
from matta_jax.errors import UserError

PAIRS = [("a b", "a b", 5.0), ("a b", "a c", 3.0), ("a b", "d e", 0.5), ("f", "g", 0.0)]


def test_three_forms_are_read_alike(tmp_path):
    lines = [json.dumps({"text": a, "pair": b, "score": score}) for a, b, score in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.tsv").write_text("\n".join(f"{a}\t{b}\t{s}" for a, b, s in PAIRS) + "\n")
    benchmark = "\n".join(f"g\tf\t2012\t1\t{s}\t{a}\t{b}\tfrom\tthere" for a, b, s in PAIRS)
    (tmp_path / "a.csv").write_text(benchmark)
    for name in ("a.jsonl", "a.tsv", "a.csv"):
        assert [
            dataclasses.astuple(pair) for pair in data.read_pair_lines(tmp_path / name, "sts:a")
        ] == PAIRS


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "a\tb\n", "line 1 has 2 columns; it must be"),
        ("a.tsv", "a\tb\t3\na\tb\tx\n", "line 2: score='x' must be a finite number"),
        ("a.tsv", "a\tb\tnan\n", "line 1: score=nan must be a finite number"),
        ("a.jsonl", '{"text": "a", "pair": "b"}\n', "line 1: score=None must be a finite number"),
        ("a.jsonl", '{"text": "a"}\n', "line 1 has no text field 'pair'"),
    ],
)
def test_what_is_no_scored_pair_is_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as error:
        list(data.read_pair_lines(tmp_path / name, "sts:a"))
    assert "\n" not in str(error.value)


def test_scores_are_not_read_where_none_are_asked_for(tmp_path):
    fields = data.PairFields(score=None)
    (tmp_path / "a.tsv").write_text("a\tb\nc\td\tnot a number\n")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "pair": "b", "score": "x"}\n')
    for name, count in (("a.tsv", 2), ("b.jsonl", 1)):
        pairs = list(data.read_pair_lines(tmp_path / name, "a source", fields))
        assert len(pairs) == count and (pairs[0].text, pairs[0].pair) == ("a", "b")
