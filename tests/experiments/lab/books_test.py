import gzip
import json

import pytest

from matta_jax.errors import UserError


def test_excerpts_are_written_once_and_mistakes_end_in_a_line(load, tmp_path):
    books = load("lab.books")
    data, workdir = tmp_path / "data", tmp_path / "runs"
    (data / "books").mkdir(parents=True)
    book = gzip.compress(json.dumps({"text": "word " * 20_000}).encode() + b"\n")
    (data / "books" / "validation.jsonl.gz").write_bytes(book)
    with pytest.raises(
        UserError, match="has no books/test.jsonl.gz; name the folder that has books/ and bpe/"
    ):
        books.write_excerpts(data, workdir)
    for damaged in (book[:-20], b"no gzip", gzip.compress(b'{"title": 1}\n')):
        (data / "books" / "test.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"test.jsonl.gz is damaged \(.*; fetch it again"):
            books.write_excerpts(data, workdir)
    assert not workdir.exists()

    (data / "books" / "test.jsonl.gz").write_bytes(book)
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="--workdir=.*/file/runs' cannot be written .*; name another"
    ):
        books.write_excerpts(data, tmp_path / "file" / "runs")

    books.write_excerpts(data, workdir)
    written = books.excerpt(workdir, "test")
    assert json.loads(written.read_text())["text"] == ("word " * 20_000)[:60_000]
    before = written.stat().st_ino  # A file that is replaced is another one.
    books.write_excerpts(data, workdir)
    assert written.stat().st_ino == before
    written.write_text("other\n")
    books.write_excerpts(data, workdir)
    assert json.loads(written.read_text())["text"].startswith("word")
