"""Tables of tokenizers, and what has none."""

import json

import pytest

from matta_jax.errors import UserError
from matta_jax.tokenizers import PieceKind, make_tokenizer, tables_of

pytest.importorskip("tokenizers")


@pytest.mark.parametrize("kind", ["byte", "gpt2", "gpt-2", "llama-bpe", "qwen2", "spm"])
def test_pieces_stand_at_their_ids(tokenizer_file, kind):
    spec = tokenizer_file(kind)
    tokenizer = make_tokenizer(spec)
    tables = tables_of(spec, tokenizer.vocab_size + 1)
    assert (tables.start_id, tables.end_id) == tokenizer.text_ids
    assert len(tables.pieces) == tokenizer.vocab_size + 1
    assert tables.pieces[-1].kind is PieceKind.UNUSED
    [letter] = tokenizer.encode("a") if kind != "spm" else tokenizer.encode("a")[-1:]
    assert tables.pieces[letter].text in ("a", "▁a")
    assert (tables.spaces is None) == (kind != "spm")
    assert tables.composes == (kind == "qwen2")


def test_a_tokenizer_of_words_has_none(save_words):
    assert tables_of(save_words(20), 20) is None


def test_a_split_that_llama_cpp_lacks_has_none(tokenizer_file):
    """One that cuts texts at each letter e."""
    spec = tokenizer_file("gpt-2")
    file = spec.partition(":")[2]
    with open(file) as stream:
        rules = json.load(stream)
    stages = rules["pre_tokenizer"]["pretokenizers"]
    split = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
    stages.insert(0, split)
    with open(file, "w") as stream:
        json.dump(rules, stream)
    assert tables_of(spec, 900) is None


def test_missing_files_are_told(tmp_path):
    with pytest.raises(UserError, match="is missing; name a tokenizer JSON file"):
        tables_of(f"hf:{tmp_path}/none.json", 10)
