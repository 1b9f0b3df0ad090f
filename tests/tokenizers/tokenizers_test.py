import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from matta_jax import tokenizers
from matta_jax.errors import UserError

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
BYTES = tokenizers.ByteTokenizer()


@hypothesis.given(st.text(max_size=200))
def test_bytes_round_trip(text):
    text = text.replace("\0", "")
    ids = BYTES.encode(text)
    assert BYTES.decode(ids) == text and BYTES.eos_id not in ids


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
@pytest.mark.parametrize(
    "spec", [f"gpt2:{SHARED}/gpt2_bpe", f"hf:{SHARED}/bpe/books_bpe_4096.json"]
)
def test_bpe_round_trips(spec):
    tokenizer = tokenizers.make_tokenizer(spec)
    text = "Hello world, it's <|endoftext|> 1984! naïve — 東京\n\n  indented"
    ids = tokenizer.encode(text)
    assert ids.max() < tokenizer.vocab_size
    if spec.startswith("gpt2"):
        assert tokenizer.decode(ids) == text and list(tokenizer.encode("Hello world")) == [
            15496,
            995,
        ]
        assert tokenizer.eos_id == 50256 and tokenizer.eos_id not in ids


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("bytes", ["data.tokenizer='bytes'", "did you mean 'byte'"]),
        ("gpt2:/nowhere", ["/nowhere/vocab.bpe", "missing"]),
        ("hf:/nowhere.json", ["/nowhere.json", "missing"]),
    ],
)
def test_bad_tokenizers_are_named(spec, words):
    with pytest.raises(UserError) as error:
        tokenizers.make_tokenizer(spec)
    for word in words:
        assert word in str(error.value)
