import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
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
        ("b\n" * 9999, ["data.tokenizer='b\\nb", "must be byte"]),
        ("hf:a\nb.json", [r"data.tokenizer='hf:a\nb.json'", "in one line"]),
        (5, ["data.tokenizer=5", "must be byte"]),
        ("gpt2:/nowhere", ["/nowhere/vocab.bpe", "missing"]),
        ("hf:/nowhere.json", ["/nowhere.json", "missing"]),
    ],
)
def test_bad_tokenizers_are_named(spec, words):
    with pytest.raises(UserError) as error:
        tokenizers.make_tokenizer(spec)
    for word in words:
        assert word in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 300


WORDS = {"<|endoftext|>": 0, "[UNK]": 1, "the": 2, "dog": 3}


def word_level(folder, words=None, **parts):
    """The spec of a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = WORDS if words is None else words
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rules = json.loads(tokenizer.to_str()) | parts
    (folder / "tok.json").write_text(json.dumps(rules))
    return f"hf:{folder}/tok.json"


def byte_bpe(folder, *, is_special=True, **parts):
    """The spec of a tokenizer of bytes in the library's alphabet."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(words | {"th": 257}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<|endoftext|>", special=is_special)])
    rules = json.loads(tokenizer.to_str()) | parts
    (folder / "tok.json").write_text(json.dumps(rules))
    return f"hf:{folder}/tok.json"


@pytest.mark.parametrize("is_special", [True, False])
def test_names_of_special_tokens_in_a_text_are_text(tmp_path, is_special):
    tokenizer = tokenizers.make_tokenizer(byte_bpe(tmp_path, is_special=is_special))
    text = "say <|endoftext|> now"
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id == 0 and 0 not in ids
    assert tokenizer.decode(ids) == text and tokenizer.survives(text, ids)


@pytest.mark.parametrize(
    "parts",
    [
        {"truncation": dict(direction="Right", max_length=2, strategy="LongestFirst", stride=0)},
        {
            "padding": dict(
                strategy={"Fixed": 64},
                direction="Right",
                pad_to_multiple_of=None,
                pad_id=0,
                pad_type_id=0,
                pad_token="x",
            )
        },
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_what_a_file_says_of_a_call_is_not_obeyed(tmp_path, parts):
    tokenizer = tokenizers.make_tokenizer(byte_bpe(tmp_path, **parts))
    assert len(tokenizer.encode("the dog")) == 6
    rules = json.loads((tmp_path / "tok.json").read_text())
    rules["model"]["dropout"] = 0.9
    (tmp_path / "tok.json").write_text(json.dumps(rules))
    tokenizer = tokenizers.make_tokenizer(f"hf:{tmp_path}/tok.json")
    assert len(tokenizer.encode("the " * 20)) == 60


def test_a_word_spelled_as_the_separator_ends_no_document(tmp_path):
    words = {"[SEP]": 5, "[UNK]": 1, "the": 2}
    tokenizer = tokenizers.make_tokenizer(word_level(tmp_path, words))
    assert tokenizer.eos_id == 5
    assert tokenizer.encode("the [SEP] the").tolist() == [2, 2]
    assert not tokenizer.survives("the [SEP] the", np.array([2, 2]))


def test_a_vocabulary_reaches_to_its_largest_id(tmp_path):
    tokenizer = tokenizers.make_tokenizer(word_level(tmp_path, WORDS | {"far": 70_000}))
    assert tokenizer.vocab_size == 70_001 and tokenizer.encode("far").tolist() == [70_000]
    assert tokenizer.has_token[[3, 4, 69_999, 70_000]].tolist() == [True, False, False, True]
    assert tokenizer.decode(np.array([2, 5, 70_000, 80_000, 2**31 - 1])) == "the far"
    with pytest.raises(UserError, match="model.vocab_size=320 must be at least the 70001 ids"):
        tokenizers.fitting_tokenizer(tokenizer.name, 320)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the dog", 7), ("the cat dog", 7), ("東京", 0), ("the  dog", 7), ("the dog ", 7)],
)
def test_what_a_tokenizer_loses_is_not_counted(tmp_path, text, expected):
    tokenizer = tokenizers.make_tokenizer(word_level(tmp_path))
    ids = tokenizer.encode(text)
    assert tokenizer.count_bytes(text, ids) == expected
    assert tokenizer.survives(text, ids) == (text == "the dog")


def test_the_byte_tokenizer_counts_what_it_keeps():
    ids = BYTES.encode("né" + "\0" * 9)
    assert BYTES.count_bytes("né" + "\0" * 9, ids) == BYTES.count_bytes("né", ids) == 3
    # Half a character is one byte, and not the three of its replacement.
    assert BYTES.num_bytes(ids[:2]) == 2
    assert BYTES.decode(np.array([65, 256, 999, -1, 66])) == "AB"


@pytest.mark.parametrize(
    ("text", "decoded", "expected"),
    [
        # Spaces that a decoder puts between tokens stand for no letter that was lost.
        ("zebra QUICK xylo", "z e br a x y l o", 11),
        ("the old 東京 dog", "t h e o l d d o g", 12),
        ("The Dog, 東", "the dog , [?]", 9),
        ("東京", "a b c d e f", 0),
    ],
)
def test_what_a_decoder_adds_is_not_counted(text, decoded, expected, monkeypatch):
    monkeypatch.setattr(type(BYTES), "known_text", lambda self, ids: decoded)
    assert BYTES.count_bytes(text, BYTES.encode(text), survives=False) == expected


def gpt2_files(folder, *, end_id=None, merges="#version: 0.2\nt h\n"):
    from tokenizers import pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    order = sorted(letters, key=lambda letter: (ord(letter) > 255, ord(letter)))
    ids = {letter: i for i, letter in enumerate(order)} | {"th": 256}
    if end_id is not None:
        ids["<|endoftext|>"] = end_id
    (folder / "encoder.json").write_text(json.dumps(ids))
    (folder / "vocab.bpe").write_text(merges)
    return f"gpt2:{folder}"


@pytest.mark.parametrize(("end_id", "expected"), [(None, 257), (257, 257), (300, 300)])
def test_the_end_token_of_gpt2_is_where_its_file_says(tmp_path, end_id, expected):
    tokenizer = tokenizers.make_tokenizer(gpt2_files(tmp_path, end_id=end_id))
    assert tokenizer.eos_id == expected and tokenizer.vocab_size == expected + 1
    ids = tokenizer.encode("the né <|endoftext|>")
    assert ids[0] == 256 and tokenizer.decode(ids) == "the né <|endoftext|>"
    assert tokenizer.has_token.sum() == 258 and tokenizer.num_bytes(ids[:6]) == 7


def test_other_files_of_gpt2_at_the_same_path_are_read(tmp_path):
    spec = gpt2_files(tmp_path)
    assert tokenizers.make_tokenizer(spec).encode("the")[0] == 256
    gpt2_files(tmp_path, merges="#version: 0.2\n")
    with pytest.raises(UserError, match="do not fit together"):
        tokenizers.make_tokenizer(spec)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("encoder.json", "[]"),
        ("encoder.json", "5"),
        ("encoder.json", "[" * 200_000),
        ("encoder.json", '{"a": NaN}'),
        ("encoder.json", '{"a": "b"}'),
        ("encoder.json", '{"<|endoftext|>": []}'),
        ("encoder.json", json.dumps({"<|endoftext|>": "a" * 9999})),
        ("vocab.bpe", "t h h\n"),
        ("vocab.bpe", "東 京\n"),
        ("vocab.bpe", b"\xff\xfe"),
    ],
)
def test_damaged_files_of_gpt2_end_in_one_line(tmp_path, name, content):
    spec = gpt2_files(tmp_path)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="data.tokenizer='gpt2:") as error:
        tokenizers.make_tokenizer(spec)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 200_000,
        '{"model": NaN}',
        '{"model": {"type": "BPE"}}',
        json.dumps({"version": "a" * 9999}),
    ],
    ids=range(7),
)
def test_damaged_files_of_hf_end_in_one_line(tmp_path, content):
    (tmp_path / "tok.json").write_text(content)
    with pytest.raises(UserError, match="data.tokenizer='hf:") as error:
        tokenizers.make_tokenizer(f"hf:{tmp_path}/tok.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_text_that_a_tokenizer_refuses_is_one_line(tmp_path):
    spec = word_level(tmp_path, {"<|endoftext|>": 0, "the": 1})
    with pytest.raises(UserError, match="cannot encode a text"):
        tokenizers.make_tokenizer(spec).encode("cat")
