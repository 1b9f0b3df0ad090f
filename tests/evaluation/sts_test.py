"""Similarity of texts: what is read, and that cosines are set against people's scores."""

import json

import numpy as np
import pytest
import scipy.stats

from matta_jax.errors import UserError
from matta_jax.evaluation import _sts

PAIRS = [("a b", "a b", 5.0), ("a b", "a c", 3.0), ("a b", "d e", 0.5), ("f", "g", 0.0)]


def test_three_forms_are_read_alike(tmp_path):
    lines = [json.dumps({"text": a, "pair": b, "score": score}) for a, b, score in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.tsv").write_text("\n".join(f"{a}\t{b}\t{s}" for a, b, s in PAIRS) + "\n")
    benchmark = "\n".join(f"g\tf\t2012\t1\t{s}\t{a}\t{b}\tfrom\tthere" for a, b, s in PAIRS)
    (tmp_path / "a.csv").write_text(benchmark)
    for name in ("a.jsonl", "a.tsv", "a.csv"):
        assert _sts._read(tmp_path / name, "tasks='sts:a'") == PAIRS


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
        _sts._read(tmp_path / name, "tasks='sts:a'")
    assert "\n" not in str(error.value)


def test_the_interval_is_of_the_correlation():
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = a + rng.normal(size=400)
    value = _sts.spearman(a, b)
    assert value == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    low, high = _sts._interval(value, 400)
    assert low < value < high and high - low == pytest.approx(0.12, abs=0.03)
    assert _sts.spearman(a, np.ones(400)) == 0
