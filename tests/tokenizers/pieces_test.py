"""Tokenizers out of the tables of other formats."""

import io
import json

import numpy as np
import pytest

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.tokenizers import (
    Piece,
    PieceKind,
    Spaces,
    make_tokenizer,
    merges_tokenizer,
    read_spm,
    spm_tokenizer,
)

TEXTS = ["the quick brown fox, the lazy dog", " two  spaces\nand a line", "ünïcode 🙂", ""]


def opened(rules, folder):
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return make_tokenizer(f"hf:{folder}/tokenizer.json")


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    """`spm(**options)`: a SentencePiece model that was trained on a few words, and its file."""
    library = pytest.importorskip("sentencepiece")

    def train(**options):
        model = io.BytesIO()
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox jumps over the lazy dog " * 20]),
            model_writer=model, vocab_size=options.pop("vocab_size", 60), minloglevel=2,
            **{"model_type": "bpe", "hard_vocab_limit": False} | options,
        )  # fmt: skip
        file = tmp_path_factory.mktemp("spm") / "a.model"
        file.write_bytes(model.getvalue())
        return library.SentencePieceProcessor(model_file=str(file)), file

    return train


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"byte_fallback": True, "vocab_size": 330},
    ],
)
def test_a_sentencepiece_model_gives_its_own_ids(spm, tmp_path, options):
    processor, file = spm(**options)
    tokenizer = opened(read_spm(storage.path(str(file))), tmp_path)
    assert tokenizer.start_id == processor.bos_id() == 1
    assert tokenizer.eos_id == processor.eos_id() == 2
    assert tokenizer.separator.tolist() == [2, 1]
    for text in TEXTS:
        np.testing.assert_array_equal(tokenizer.encode(text), processor.encode(text))
    text = "the lazy dog"
    assert tokenizer.decode(np.array([1, *tokenizer.encode(text), 2])) == text


def test_models_that_are_no_merges_are_refused(spm, tmp_path):
    _, file = spm(model_type="unigram", vocab_size=40)
    with pytest.raises(UserError, match="is not made of merges"):
        read_spm(storage.path(str(file)))
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        read_spm(storage.path(str(tmp_path / "bad.model")))
    with pytest.raises(UserError, match="is missing; name a SentencePiece .model file"):
        read_spm(storage.path(str(tmp_path / "none.model")))


def test_merges_go_by_the_score_of_what_they_make(tmp_path):
    control = PieceKind.CONTROL
    pieces = [Piece("<unk>", kind=PieceKind.UNKNOWN), Piece("</s>", kind=control)]
    pieces += [Piece(text, -i) for i, text in enumerate(["bc", "ab", "a", "b", "c"])]
    tokenizer = opened(spm_tokenizer(pieces, Spaces(adds_first=False)), tmp_path)
    assert tokenizer.encode("abc").tolist() == [4, 2]  # a and bc, the likelier.
    assert tokenizer.start_id == tokenizer.eos_id == 1


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("gpt-2", "it's 123", ["it", "'s", " 123"]),
        ("smollm", "it's 123", ["it", "'s", " ", "1", "2", "3"]),
        ("llama-bpe", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("qwen2", "it's 12", ["it", "'s", " ", "1", "2"]),
    ],
)
def test_texts_are_split_before_they_are_merged(tmp_path, split, text, words):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = [Piece("<|endoftext|>", kind=PieceKind.CONTROL), *map(Piece, alphabet)]
    rules = merges_tokenizer(pieces, [], split)
    stages = tokenizers.Tokenizer.from_str(json.dumps(rules)).pre_tokenizer
    assert [word.replace("Ġ", " ") for word, _ in stages.pre_tokenize_str(text)] == words
    tokenizer = opened(rules, tmp_path)
    for sample in TEXTS:
        ids = tokenizer.encode(sample)
        assert len(ids) == len(sample.encode()) and tokenizer.decode(ids) == sample


def test_a_split_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="tokenizer.ggml.pre='deepseek' is not known, only gpt-2"):
        merges_tokenizer([Piece("a")], [], "deepseek")
