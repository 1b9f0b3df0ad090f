"""Sets of the library `datasets`: the documents of the same texts elsewhere, or one line."""

import json
import sys

import pytest

from matta_jax import data
from matta_jax.data import _hub
from matta_jax.errors import UserError

datasets = pytest.importorskip("datasets")
TEXTS = [f"text {i} ü" for i in range(30)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What the library caches stays with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    readers = (_hub._load, _hub._builder)
    for reader in readers:
        reader.cache_clear()
    yield
    for reader in readers:
        reader.cache_clear()


@pytest.fixture
def saved(tmp_path):
    """The folder of a set of two splits, as `save_to_disk` writes it."""
    made = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(30))}),
        validation=datasets.Dataset.from_dict({"text": TEXTS[:3], "id": [1, 2, 3]}),
    )
    made.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.fixture
def lines(tmp_path):
    """A folder of JSON lines, which the library reads as a set."""
    (tmp_path / "lines").mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "lines" / "train.jsonl").write_text(rows)
    return tmp_path / "lines"


@pytest.mark.filterwarnings("ignore")
def test_its_documents_are_those_of_the_same_lines(saved, lines):
    expected = list(data.Corpus(f"text:{lines}/train.jsonl"))
    for source in (f"hf:{saved}", f"hf:{saved}:train", f"hf:{lines}", f"hf:{lines}:train"):
        corpus = data.Corpus(source)
        assert list(corpus) == expected, source
        parts = data._parts.example_parts(len(TEXTS), least=7)
        assert [d for part in parts for d in corpus.documents(part)] == expected
        assert [d for part in corpus.parts() for d in corpus.documents(part)] == expected
    assert [d.text for d in data.Corpus(f"hf:{saved}:validation")] == TEXTS[:3]


@pytest.fixture
def files(tmp_path):
    """A folder of several files."""
    (tmp_path / "files").mkdir()
    for number in range(3):
        rows = [json.dumps({"text": text}) + "\n" for text in TEXTS[10 * number : 10 * number + 10]]
        (tmp_path / "files" / f"train-{number}.jsonl").write_text("".join(rows))
    return tmp_path / "files"


@pytest.mark.filterwarnings("ignore")
def test_a_stream_has_the_documents_of_its_files_and_keeps_nothing(files, tmp_path):
    expected = list(data.Corpus(f"text:{files}/*.jsonl"))
    for source in (f"hf-stream:{files}", f"hf-stream:{files}:train"):
        corpus = data.Corpus(source)
        assert list(corpus) == expected
        assert len(corpus.parts()) == 3
        assert [d for part in corpus.parts() for d in corpus.documents(part)] == expected
    two = data._parts.Part(within=(1, 3))
    assert list(corpus.documents(two)) == expected[10:]
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.filterwarnings("ignore")
def test_another_text_of_a_stream_is_another_fingerprint(files, tmp_path):
    first = data.Corpus(f"hf-stream:{files}").fingerprint()
    files.rename(tmp_path / "moved")
    assert data.Corpus(f"hf-stream:{tmp_path}/moved").fingerprint() == first
    (tmp_path / "moved" / "train-2.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    _hub._builder.cache_clear()
    assert data.Corpus(f"hf-stream:{tmp_path}/moved").fingerprint() != first


def test_files_of_the_hub_go_by_their_commit(monkeypatch):
    class Builder:
        class config:
            data_files = {"train": ["hf://datasets/a/b@123/x.parquet"]}  # noqa: RUF012

    monkeypatch.setattr(_hub, "_builder", lambda source: Builder)
    first = _hub.stream_version("hf-stream:a/b")
    Builder.config.data_files = {"train": ["hf://datasets/a/b@124/x.parquet"]}
    assert _hub.stream_version("hf-stream:a/b") != first
    Builder.config.data_files = None
    with pytest.raises(UserError, match="has no files of its split 'train'"):
        _hub.stream_version("hf-stream:a/b")


@pytest.mark.filterwarnings("ignore")
def test_another_text_is_another_fingerprint(saved, tmp_path):
    first = data.Corpus(f"hf:{saved}").fingerprint()
    assert data.Corpus(f"hf:{saved}:validation").fingerprint() != first
    saved.rename(tmp_path / "moved")
    assert data.Corpus(f"hf:{tmp_path}/moved").fingerprint() == first
    changed = datasets.Dataset.from_dict({"text": [*TEXTS[1:], TEXTS[0]]})
    changed.save_to_disk(str(tmp_path / "changed"))
    assert data.Corpus(f"hf:{tmp_path}/changed").fingerprint() != first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "field", "words"),
    [
        ("hf:{saved}", "body", "data.text_field='body' is not in 'hf:.*'; fields: text, id"),
        ("hf:{saved}", "id", "id of example 0 is int, and must be a text"),
        ("hf:{saved}:test", "text", "cannot be read by the library datasets .KeyError: .*test"),
        ("hf:{lines}:test", "text", "cannot be read by the library datasets .ValueError: .*split"),
        ("hf:{saved}@x:y:z", "text", "cannot be read by the library datasets|must be hf:NAME"),
        ("hf-stream:{lines}", "body", "data.text_field='body' is not in 'hf-.*'; fields: text"),
        (
            "hf-stream:{lines}:test",
            "text",
            "cannot be read by the library datasets .ValueError: .*",
        ),
        ("hf-stream:nobody/nothing", "text", "cannot be read by the library datasets"),
        ("hf:nobody/nothing", "text", "cannot be read by the library datasets"),
    ],
)
def test_what_is_no_set_is_one_line(saved, lines, source, field, words):
    with pytest.raises(UserError, match=words) as error:
        list(data.Corpus(source.format(saved=saved, lines=lines), field))
    assert "\n" not in str(error.value)


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'matta_jax\[hub"):
        list(data.Corpus("hf:a/b"))
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'matta_jax\[hub"):
        list(data.Corpus("hf-stream:a/b"))
