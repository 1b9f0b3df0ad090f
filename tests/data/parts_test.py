"""Parts of a corpus: all of its documents, each once and in order, however it falls apart."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from matta_jax import storage
from matta_jax.data import _corpora, _parts
from matta_jax.data._corpora import Corpus
from matta_jax.errors import UserError

# Of any length, with and without an end of line at the end, and with lines that are blank.
LINES = st.lists(st.text(max_size=30), min_size=1, max_size=30)


@hypothesis.given(LINES, st.integers(1, 200), st.booleans())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_ranges_of_lines_are_the_lines(tmp_path, texts, target, has_end):
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    file = storage.path(tmp_path / "a.jsonl")
    file.write_text(lines + "\n" * has_end, encoding="utf-8")
    corpus = Corpus(f"text:{file}")
    parts = _parts.file_parts([file], "it", target)
    read = [document.text for part in parts for document in corpus.documents(part)]
    assert read == texts == [document.text for document in corpus]
    if file.stat().st_size >= 2 * target:
        bounds = [part.within for part in parts]
        assert bounds[0][0] == 0 and bounds[-1][1] == file.stat().st_size
        # No part but the last is smaller than what was asked for.
        assert all(stop - start >= target for start, stop in bounds[:-1])


def test_small_files_are_put_together_and_packed_ones_left_whole(tmp_path):
    for i, size in enumerate((10, 20, 30, 200, 5)):
        (tmp_path / f"{i}.txt").write_text("x" * size)
    (tmp_path / "9.jsonl.gz").write_bytes(b"x" * 500)
    files = [storage.path(tmp_path / name) for name in sorted(p.name for p in tmp_path.iterdir())]
    names = [
        [storage.path(file).name for file in part.files]
        for part in _parts.file_parts(files, "it", 50)
    ]
    assert names == [["0.txt", "1.txt", "2.txt"], ["3.txt"], ["4.txt", "9.jsonl.gz"]]
    assert all(part.within is None for part in _parts.file_parts(files, "it", 50))


def test_parquet_falls_into_row_groups(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"text {i} " * 20 for i in range(100)]
    file = storage.path(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=10)
    corpus = Corpus(f"parquet:{file}")
    parts = _parts.file_parts([file], "it", 500)
    assert 2 < len(parts) <= 10
    assert [document.text for part in parts for document in corpus.documents(part)] == texts
    parquet.write_table(pyarrow.table({"text": [*texts, None]}), file, row_group_size=10)
    with pytest.raises(UserError, match="row 100: text is null"):
        for part in _parts.file_parts([file], "it", 500):
            list(corpus.documents(part))
    file.write_bytes(b"PAR1" + b"x" * 5000)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        for part in corpus.parts():
            list(corpus.documents(part))
    # One that would be cut is named too, and not left out.
    with pytest.raises(UserError, match="it: .*a.parquet cannot be read as Parquet"):
        _parts.file_parts([file], "it", 500)


@pytest.mark.parametrize("count", [0, 1, 9, 10_000, 10_000_000])
def test_examples_are_each_in_one_part(count):
    parts = _parts.example_parts(count)
    numbers = [part.within for part in parts]
    assert len(parts) <= 256 and sum(stop - start for start, stop in numbers) == count
    assert [start for start, _ in numbers[1:]] == [stop for _, stop in numbers[:-1]]


def test_a_bad_line_in_a_part_tells_where_lines_are_counted_from(tmp_path, monkeypatch):
    monkeypatch.setattr(
        _corpora, "file_parts", lambda files, what: _parts.file_parts(files, what, 40)
    )
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 5 + '{"text": 1}\n' + '{"text": "a"}\n')
    corpus = Corpus(f"text:{tmp_path}/a.jsonl")
    with pytest.raises(UserError, match="lines from byte 42: .*a.jsonl line 3: text=1 must be"):
        for part in corpus.parts():
            list(corpus.documents(part))
