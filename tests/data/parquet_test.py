"""Parquet, and JSON lines however they are packed: the same texts, or one line."""

import gzip
import json
import sys

import numpy as np
import pytest

from matta_jax import storage
from matta_jax.data import _jsonl, _parquet
from matta_jax.data._corpora import Corpus
from matta_jax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

TEXTS = ["first", "", "zweiter ü", "a\nb", "x" * 5000, *map(str, range(3000))]


def write(path, columns, **options):
    parquet.write_table(pyarrow.table(columns), path, **options)
    return storage.path(path)


@pytest.fixture
def lines():
    return "".join(json.dumps({"url": "u", "text": text}) + "\n" for text in TEXTS).encode()


def test_a_column_is_the_documents_of_the_same_json_lines(tmp_path, lines):
    (tmp_path / "a.jsonl").write_bytes(lines)
    expected = list(Corpus(f"text:{tmp_path}/a.jsonl"))
    for name, kind in (("a", pyarrow.string()), ("b", pyarrow.large_string())):
        columns = {"url": ["u"] * len(TEXTS), "text": pyarrow.array(TEXTS, kind)}
        write(tmp_path / f"{name}.parquet", columns, row_group_size=700)
        corpus = Corpus(f"parquet:{tmp_path}/{name}.parquet")
        assert list(corpus) == expected and [document.text for document in corpus] == TEXTS
    prints = {Corpus(f"parquet:{tmp_path}/{name}.parquet").fingerprint() for name in "ab"}
    assert len(prints) == 2


@pytest.mark.parametrize("name", ["c4.json.gz", "a.jsonl.gz", "a.jsonl.zst", "a.json.zst"])
def test_packed_lines_are_the_lines(tmp_path, lines, name):
    # Two frames, as files that were written one behind another.
    pack = gzip.compress if name.endswith(".gz") else zstandard.ZstdCompressor().compress
    half = len(lines) // 2
    (tmp_path / name).write_bytes(pack(lines[:half]) + pack(lines[half:]))
    assert [document.text for document in Corpus(f"text:{tmp_path}/{name}")] == TEXTS


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"body": ["a"]}, "has no column 'text' .it has: body.; set data.text_field"),
        ({"text": [1, 2]}, "column 'text' is of int64, and must be of texts"),
        ({"text": ["a", "b", None]}, "row 2: text is null, and must be a text"),
    ],
)
def test_what_is_no_column_of_texts_is_one_line(tmp_path, columns, words):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=words) as error:
        list(_parquet.read_column(path, "text", "data"))
    assert "\n" not in str(error.value) and "a.parquet" in str(error.value)


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, {"text": TEXTS})
    whole = path.read_bytes()
    for data in (
        b"",
        b"no parquet",
        whole[: len(whole) // 2],
        whole[:4] + b"x" * 200 + whole[204:],
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match="a.parquet cannot be read as Parquet") as error:
            list(_parquet.read_column(storage.path(path), "text", "data"))
        assert "\n" not in str(error.value)
    # Of many blocks, of which the first ones could be unpacked.
    packed = zstandard.ZstdCompressor().compress(np.random.default_rng(0).bytes(10**6))
    for data in (packed[: len(packed) // 2], packed[:-1], b"no zstd", packed + b"tail"):
        (tmp_path / "a.jsonl.zst").write_bytes(data)
        with pytest.raises(UserError, match="cannot be read as zstd"):
            _jsonl.read_text(storage.path(tmp_path / "a.jsonl.zst"), "data")


@pytest.mark.parametrize("package", ["pyarrow", "zstandard"])
def test_a_missing_package_names_its_extra(tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    kind = {"pyarrow": "parquet", "zstandard": "text"}[package]
    with pytest.raises(UserError, match=rf"{package}: pip install 'matta_jax\[corpora\]'"):
        list(Corpus(f"{kind}:{tmp_path}/a*.{'parquet' if kind == 'parquet' else 'zst'}"))


def test_a_folder_and_another_kind_of_file_say_what_to_name(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for source, words in (
        (f"parquet:{tmp_path}", "is a folder; name parquet:.*/.*parquet"),
        (f"parquet:{tmp_path}/*", "matches .*a.txt, which is none of .parquet"),
        (
            "parqet:x",
            "must be stdlib, .*, prepared:FOLDER or.*did you mean 'parquet'",
        ),
    ):
        with pytest.raises(UserError, match=words):
            Corpus(source).files()
