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
    _hub._load.cache_clear()
    yield
    _hub._load.cache_clear()


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
