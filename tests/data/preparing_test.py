"""Preparation: the token streams of a run, whatever writes them, wherever it stops."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from matta_jax import data, storage, tokenizers
from matta_jax.data import _corpora, _part_jobs, _parts, _preparing, _workers
from matta_jax.errors import UserError

BYTES = tokenizers.ByteTokenizer()
HERE = data.Runner(workers=1)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of a few documents."""

    def parts(files, what):
        return _parts.file_parts(files, what, 1000 if len(files) < 100 else 2**21)

    monkeypatch.setattr(_corpora, "file_parts", parts)


@pytest.fixture
def prepared(tiny, tmp_path):
    """`prepared(**fields)`: the config, and what was prepared of it."""

    def prepare(folder="p", **fields):
        config = tiny(**fields)
        quiet = {"runner": HERE, "log": lambda _: None}
        return config, data.prepare(config, tmp_path / folder, **quiet)

    return prepare


def reading(config, folder):
    source = dataclasses.replace(config.data, source=f"prepared:{folder}")
    return dataclasses.replace(config, data=source)


def lines(folder, count=50):
    folder.mkdir(exist_ok=True)
    rows = [{"text": f"line {i} " * (1 + i % 30)} for i in range(count)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"text:{folder}/a.jsonl"


@pytest.mark.parametrize(
    "kind",
    [
        "files",
        "lines",
        "one document",
        "two sources",
        # Ten million tokens, read three times.
        pytest.param("stdlib", marks=pytest.mark.slow),
    ],
)
def test_its_windows_are_those_of_the_corpus(tiny, prepared, tmp_path, kind):
    (tmp_path / "one.txt").write_text("0123456789" * 30)
    fields = {
        "files": {},
        "lines": {"data__source": lines(tmp_path / "lines")},
        "one document": {"data__source": f"text:{tmp_path}/one.txt"},
        "two sources": {"data__eval_source": lines(tmp_path / "lines")},
        "stdlib": {"data__source": "stdlib"},
    }[kind]
    config, made = prepared(**fields)
    assert made.num_written == made.num_parts
    assert (made.num_parts == 1) == (kind == "one document")
    for held_out in (False, True):
        expected = data.split_data(config, BYTES, held_out=held_out)
        # A second source is read as it is where a config names one.
        settings = reading(config, made.folder)
        if kind == "two sources":
            settings = tiny(data__source=f"prepared:{made.folder}", data__eval_fraction=0.3)
        windows = data.split_data(settings, BYTES, held_out=held_out)
        assert len(windows) == len(expected) > 1
        for name in ("fingerprint", "num_bytes", "num_documents", "num_lossy", "separators"):
            assert getattr(windows, name) == getattr(expected, name), name
        for i in range(0, len(expected), 1 + len(expected) // 50):
            for name, value in expected[i].items():
                np.testing.assert_array_equal(windows[i][name], value)


def test_a_folder_that_was_moved_is_the_same_and_max_windows_cuts_it(prepared, tmp_path):
    config, made = prepared()
    made.folder.rename(tmp_path / "moved")
    windows = data.split_data(reading(config, tmp_path / "moved"), BYTES, held_out=False)
    assert windows.fingerprint == made.manifest.train.fingerprint
    settings = dataclasses.replace(config.data, max_windows=3)
    cut = data.split_data(
        reading(dataclasses.replace(config, data=settings), tmp_path / "moved"),
        BYTES,
        held_out=False,
    )
    expected = data.split_data(dataclasses.replace(config, data=settings), BYTES, held_out=False)
    assert len(cut) == 3 and cut.num_bytes == expected.num_bytes
    assert cut.fingerprint == expected.fingerprint


def test_it_goes_on_where_it_was_stopped(prepared, tmp_path, monkeypatch):
    _, whole = prepared("whole")

    class Killed(BaseException):
        pass

    count = 0
    write = _part_jobs.write_part

    def dies(plan, number):
        nonlocal count
        count += 1
        if count == 3:
            raise Killed
        return write(plan, number)

    monkeypatch.setattr(_workers, "write_part", dies)
    with pytest.raises(Killed):
        prepared("stopped")
    with pytest.raises(UserError, match=r"has no manifest\.json: it is no prepared corpus, or not"):
        data.Manifest.read(storage.path(tmp_path / "stopped"))
    monkeypatch.setattr(_workers, "write_part", write)
    _, made = prepared("stopped")
    assert made.num_written == made.num_parts - 2 and made.num_parts > 4
    assert made.manifest == whole.manifest
    for file in whole.folder.glob("*.array_record"):
        assert (made.folder / file.name).read_bytes() == file.read_bytes()
    assert prepared("stopped")[1].num_written == 0


def test_parts_whose_text_or_files_changed_are_written_again(prepared, tmp_path):
    source = lines(tmp_path / "lines")
    _, first = prepared(data__source=source)
    file = tmp_path / "lines" / "a.jsonl"
    file.write_text(file.read_text().replace("line 7 ", "LINE 7 "))
    _, second = prepared(data__source=source)
    assert second.num_written == 1 < second.num_parts
    assert second.manifest.train != first.manifest.train or (
        second.manifest.held_out != first.manifest.held_out
    )
    shard = second.folder / "train-00001.array_record"
    content = shard.read_bytes()
    word = "line".encode("utf-16-le")  # Of bytes as tokens.
    shard.write_bytes(content.replace(word, "LINE".encode("utf-16-le"), 1))
    assert shard.read_bytes() != content
    _, third = prepared(data__source=source)
    assert third.num_written == 1 and third.manifest == second.manifest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__eval_fraction": 0.5}, "begun with another value of data.eval_fraction"),
        ({"data__text_field": "body"}, "another value of data.text_field"),
        ({"data__source": "text:{folder}/*.jsonl"}, "another value of the files of data.source"),
    ],
)
def test_another_preparation_is_not_mixed_in(prepared, tiny, tmp_path, fields, words):
    _, made = prepared()
    lines(tmp_path / "lines")
    if "data__source" in fields:
        fields = {"data__source": fields["data__source"].format(folder=tmp_path / "lines")}
    with pytest.raises(UserError, match=words):
        prepared(**fields)
    data.Manifest.read(made.folder)
    if "data__text_field" in fields:
        return
    config = tiny(**fields)
    over = data.prepare(config, made.folder, runner=HERE, overwrite=True, log=lambda _: None)
    assert over.num_written == over.num_parts
    expected = data.split_data(config, BYTES, held_out=False).fingerprint
    assert over.manifest.train.fingerprint == expected


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_left_as_it_is(tiny, tmp_path, overwrite):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds other files; name a new folder"):
        data.prepare(tiny(), tmp_path / "mine", overwrite=overwrite, log=lambda _: None)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__stream": True, "data__eval_source": "stdlib"}, "data.stream=True reads a corpus"),
        ({"data__source": "prepared:x"}, "is prepared already"),
        ({"data__source": "text:none/*.txt"}, "matches no file"),
        ({"data__eval_fraction": 1e-6}, "has no held-out text at data.eval_fraction=1e-06"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tiny, tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        data.prepare(tiny(**fields), tmp_path / "p", runner=HERE, log=lambda _: None)


def test_a_corpus_of_no_part_is_one_line(prepared, monkeypatch):
    monkeypatch.setattr(data.Corpus, "parts", lambda corpus: [])
    with pytest.raises(UserError, match="has no training text at data.eval_fraction=0.2"):
        prepared()


def test_examples_are_not_prepared(embedder, tmp_path):
    with pytest.raises(UserError, match="reads examples, of which nothing is prepared"):
        data.prepare(embedder(), tmp_path / "p", log=lambda _: None)


def test_held_out_documents_that_are_trained_on_are_counted(tiny, tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(40)]
    near = [text + "!" for text in texts]
    rows = [json.dumps({"text": text}) + "\n" for text in texts + near]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    config = tiny(data__source=f"text:{tmp_path}/a.jsonl")
    made = data.prepare(config, tmp_path / "p", runner=HERE, log=lambda _: None)
    corpus = data.Corpus(config.data.source)
    held_out, train = (
        {d.text.rstrip("!") for d in data.split_documents(corpus, 0.2, held_out=side)}
        for side in (True, False)
    )
    # Each text has a twin; where both are held out, neither is trained on.
    assert made.manifest.near_duplicates == len(held_out & train) > 3


def test_a_lossy_tokenizer_is_told_of(prepared, monkeypatch):
    monkeypatch.setattr(tokenizers.ByteTokenizer, "survives", lambda *_: False)
    _part_jobs._tokenizer.cache_clear()
    tally = prepared()[1].manifest.train.tally
    assert tally.num_lossy == tally.num_documents and tally.first_lossy.startswith("document ")


def test_summed_tallies_tell_the_first_loss():
    parts = [_preparing.Tally(1, 2, 3, 0, ""), _preparing.Tally(1, 2, 3, 1, "a")]
    total = _preparing._summed([*parts, _preparing.Tally(0, 0, 0, 2, "b")])
    assert total == _preparing.Tally(2, 4, 6, 3, "a")


@pytest.mark.slow
def test_a_corpus_in_a_bucket_is_prepared_into_it(bucket, corpus, prepared, tiny):
    for file in storage.glob(corpus.removeprefix("text:")):
        storage.copy_file(file, storage.path(bucket) / "prepare me" / file.name)
    _, expected = prepared()
    config = tiny(data__source=f"text:{bucket}/prepare me/*.txt")
    quiet = {"runner": HERE, "log": lambda _: None}
    made = data.prepare(config, f"{bucket}/prepared ü@1", **quiet)
    for name in ("train", "held_out", "corpus"):
        assert getattr(made.manifest, name) == getattr(expected.manifest, name)
    windows = data.split_data(reading(config, made.folder), BYTES, held_out=False)
    local = data.split_data(tiny(), BYTES, held_out=False)
    for i in range(len(local)):
        np.testing.assert_array_equal(windows[i]["tokens"], local[i]["tokens"])
    assert data.prepare(config, f"{bucket}/prepared ü@1", **quiet).num_written == 0


@pytest.mark.slow
def test_processes_write_what_one_does(prepared, tiny, tmp_path):
    _, expected = prepared("one")
    log = []
    runner = data.Runner(workers=3)
    made = data.prepare(tiny(), tmp_path / "three", runner=runner, log=log.append)
    assert made.manifest == expected.manifest and "by 3 processes" in log[0]
    for file in expected.folder.glob("*.array_record"):
        assert (made.folder / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(made.folder)
