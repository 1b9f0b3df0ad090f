import gzip
import json

import pytest

from matta_jax.errors import UserError


def test_mistakes_end_in_a_line(load, tmp_path):
    books = load("lab.books")
    with pytest.raises(
        UserError, match="has no books/test.jsonl.gz; name the folder that has books/ and bpe/"
    ):
        list(books.read_books(tmp_path, "test.jsonl.gz"))

    (tmp_path / "books").mkdir()
    file = tmp_path / "books" / "test.jsonl.gz"
    book = gzip.compress(json.dumps({"text": "word " * 20_000}).encode() + b"\n")
    for damaged in (book[:-20], b"no gzip", gzip.compress(b'{"title": 1}\n')):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"test.jsonl.gz is damaged \(.*; fetch it again"):
            list(books.read_books(tmp_path, "test.jsonl.gz"))

    file.write_bytes(book)
    assert list(books.read_books(tmp_path, "test.jsonl.gz")) == ["word " * 20_000]


def test_a_file_is_written_once(load, tmp_path):
    books = load("lab.books")
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="--workdir=.*/file/runs' cannot be written .*; name another"
    ):
        books.write_once(tmp_path / "file" / "runs" / "a.jsonl", "text")

    written = tmp_path / "runs" / "a.jsonl"
    books.write_once(written, "text")
    before = written.stat().st_ino  # A file that is replaced is another one.
    books.write_once(written, "text")
    assert written.stat().st_ino == before
    written.write_text("other\n")
    books.write_once(written, "text")
    assert written.read_text() == "text"
